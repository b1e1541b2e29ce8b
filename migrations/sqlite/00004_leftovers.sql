-- Who writes at a key asks what other media may have left there.

-- +goose Up
CREATE INDEX possible_writes_key ON possible_writes (object_key);

-- +goose Down
DROP INDEX possible_writes_key;
