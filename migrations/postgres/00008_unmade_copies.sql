-- A tombstone stays while a copy of its media could still be made, which an
-- operator's retry may do long after it failed.

-- +goose Up
CREATE INDEX copy_items_unmade ON {schema}.copy_items (target_lane, media_id) WHERE state IN ('failed', 'cancelled');

-- +goose Down
DROP INDEX {schema}.copy_items_unmade;
