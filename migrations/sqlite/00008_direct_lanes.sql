-- An event's lane follows from its row: nothing assigns events to lanes. A lane's
-- holder reads what is unfinished in it straight from the table. lane_id, media_id,
-- version and resources are filled when an event's row is first written by a worker:
-- when it ends, waits, or runs for a while.

-- +goose Up
DROP INDEX outbox_unassigned;
DROP INDEX outbox_window;
DROP INDEX outbox_unfinished;
CREATE INDEX outbox_lane ON outbox (service_id, environment_id, sequence)
    WHERE state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_parked ON outbox (lane_id, media_id, sequence) WHERE parked;
-- Few events concern a whole environment.
CREATE INDEX outbox_environments ON outbox (sequence)
    WHERE type IN ('EnvironmentCreated', 'EnvironmentDeleted') AND finished_at IS NULL;

-- What an event that was put off waits for: the sequence of another event, or of
-- the EnvironmentCreated whose copy comes first.
ALTER TABLE outbox ADD COLUMN waits_for INTEGER;
ALTER TABLE outbox ADD COLUMN waits_for_copy INTEGER;
-- How many times in a row it was put off.
ALTER TABLE outbox ADD COLUMN wait_count INTEGER NOT NULL DEFAULT 0;

-- A worker remembers what it has seen: lanes need not.
ALTER TABLE lanes DROP COLUMN last_sequence;
-- A deletion that begins supersedes what comes before it in the same transaction.
UPDATE lanes SET deleted_sequence = emptying_sequence WHERE emptying_sequence > deleted_sequence;
ALTER TABLE lanes DROP COLUMN emptying_sequence;
-- What was published and is in no lane yet is looked for once, from the beginning.
UPDATE lanes SET read_from = 0, ready_at = coalesce(ready_at, CAST(unixepoch('subsec') * 1000000 AS INTEGER));

-- An item that waits lists what it waits for: events of its media in the source, by
-- their sequence, and items of it into the source, by the sequence of their copy.
CREATE TABLE copy_waits (
    waits_for     INTEGER NOT NULL,
    media_id      TEXT    NOT NULL,
    copy_sequence INTEGER NOT NULL,
    PRIMARY KEY (waits_for, media_id, copy_sequence),
    FOREIGN KEY (copy_sequence, media_id) REFERENCES copy_items (copy_sequence, media_id) ON DELETE CASCADE
);
CREATE INDEX copy_waits_item ON copy_waits (copy_sequence, media_id);
-- The file names that an item which waits may get.
CREATE TABLE copy_names (
    target_lane   INTEGER NOT NULL,
    file_name     TEXT    NOT NULL,
    copy_sequence INTEGER NOT NULL,
    media_id      TEXT    NOT NULL,
    PRIMARY KEY (target_lane, file_name, copy_sequence, media_id),
    FOREIGN KEY (copy_sequence, media_id) REFERENCES copy_items (copy_sequence, media_id) ON DELETE CASCADE
);
CREATE INDEX copy_names_item ON copy_names (copy_sequence, media_id);
-- lacks: the highest copy into the source that failed to bring the media there.
ALTER TABLE copy_items ADD COLUMN lacks INTEGER NOT NULL DEFAULT 0;

INSERT INTO copy_waits (waits_for, media_id, copy_sequence)
    SELECT e.sequence, w.media_id, w.copy_sequence FROM copy_items w
    JOIN outbox e ON e.lane_id = w.source_lane AND e.media_id = w.media_id AND e.sequence < w.copy_sequence
        AND e.state IN ('available', 'running', 'retryable')
    WHERE w.state = 'waiting'
    UNION
    SELECT i.copy_sequence, w.media_id, w.copy_sequence FROM copy_items w
    JOIN copy_items i ON i.target_lane = w.source_lane AND i.media_id = w.media_id
        AND i.copy_sequence < w.copy_sequence AND i.state IN ('owed', 'waiting')
    WHERE w.state = 'waiting';
UPDATE copy_items SET state = 'failed', error_code = 'source_changed',
    error = 'the copy was cancelled by a deletion of the environment' WHERE state = 'cancelled';
UPDATE copy_items AS w SET state = 'failed', error_code = 'source_changed',
    error = 'the media was being changed in its environment while the program was upgraded: retry it'
    WHERE w.state = 'waiting' AND NOT EXISTS (SELECT 1 FROM copy_waits x
        WHERE x.copy_sequence = w.copy_sequence AND x.media_id = w.media_id);

-- +goose Down
ALTER TABLE copy_items DROP COLUMN lacks;
DROP TABLE copy_names;
DROP TABLE copy_waits;
ALTER TABLE lanes ADD COLUMN emptying_sequence INTEGER;
ALTER TABLE lanes ADD COLUMN last_sequence INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET requeued = true WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
ALTER TABLE outbox DROP COLUMN waits_for;
ALTER TABLE outbox DROP COLUMN waits_for_copy;
ALTER TABLE outbox DROP COLUMN wait_count;
DROP INDEX outbox_environments;
DROP INDEX outbox_parked;
DROP INDEX outbox_lane;
CREATE INDEX outbox_unassigned ON outbox (sequence) WHERE lane_id IS NULL;
CREATE INDEX outbox_window ON outbox (lane_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON outbox (lane_id, media_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running', 'retryable');
