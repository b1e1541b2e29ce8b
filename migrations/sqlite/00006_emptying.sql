-- A deletion that has begun goes before what it will supersede, also while it
-- waits for its next attempt.

-- +goose Up
-- The EnvironmentDeleted that has begun to empty the directory, and has not
-- ended: no event below starts, nor is it requeued before that end.
ALTER TABLE lanes ADD COLUMN emptying_sequence integer;

-- +goose Down
ALTER TABLE lanes DROP COLUMN emptying_sequence;
