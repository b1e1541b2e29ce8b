-- What a publisher's INSERT costs the CMS: one index of ours beside the table's
-- keys.

-- +goose Up
DROP INDEX outbox_window;
DROP INDEX outbox_unfinished;
CREATE INDEX outbox_window ON outbox (lane_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON outbox (lane_id, media_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running', 'retryable');

-- +goose Down
DROP INDEX outbox_window;
DROP INDEX outbox_unfinished;
CREATE INDEX outbox_window ON outbox (lane_id, sequence)
    WHERE state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON outbox (lane_id, media_id, sequence)
    WHERE state IN ('available', 'running', 'retryable');
