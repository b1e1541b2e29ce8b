-- An event's lane follows from its row: nothing assigns events to lanes. A lane's
-- holder reads what is unfinished in it straight from the table. lane_id, media_id,
-- version and resources are filled when an event's row is first written by a worker:
-- when it ends, waits, or runs for a while.

-- +goose Up
DROP INDEX {schema}.outbox_unassigned, {schema}.outbox_window, {schema}.outbox_unfinished;
-- The names may be of any length, and an index entry can't be. The publisher's
-- INSERT must not fail for that, so the index has their hash.
CREATE INDEX outbox_lane ON {schema}.outbox
    (pg_catalog.hashtextextended(service_id, pg_catalog.hashtextextended(environment_id, 0)), sequence)
    WHERE state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_parked ON {schema}.outbox (lane_id, media_id, sequence) WHERE parked;
-- Few events concern a whole environment.
CREATE INDEX outbox_environments ON {schema}.outbox (sequence)
    WHERE type IN ('EnvironmentCreated', 'EnvironmentDeleted') AND finished_at IS NULL;

-- What an event that was put off waits for: the sequence of another event, or of
-- the EnvironmentCreated whose copy comes first.
ALTER TABLE {schema}.outbox ADD COLUMN waits_for bigint;
ALTER TABLE {schema}.outbox ADD COLUMN waits_for_copy bigint;
-- How many times in a row it was put off.
ALTER TABLE {schema}.outbox ADD COLUMN wait_count integer NOT NULL DEFAULT 0;

-- A worker remembers what it has seen: lanes need not.
ALTER TABLE {schema}.lanes DROP COLUMN last_sequence;
-- A deletion that begins supersedes what comes before it in the same transaction.
UPDATE {schema}.lanes SET deleted_sequence = emptying_sequence WHERE emptying_sequence > deleted_sequence;
ALTER TABLE {schema}.lanes DROP COLUMN emptying_sequence;
-- What was published and is in no lane yet is looked for once, from the beginning.
UPDATE {schema}.lanes SET read_from = 0, ready_at = coalesce(ready_at, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);

-- An item that waits lists what it waits for: events of its media in the source, by
-- their sequence, and items of it into the source, by the sequence of their copy.
CREATE TABLE {schema}.copy_waits (
    waits_for     bigint NOT NULL,
    media_id      text   NOT NULL,
    copy_sequence bigint NOT NULL,
    PRIMARY KEY (waits_for, media_id, copy_sequence),
    FOREIGN KEY (copy_sequence, media_id) REFERENCES {schema}.copy_items (copy_sequence, media_id) ON DELETE CASCADE
);
CREATE INDEX copy_waits_item ON {schema}.copy_waits (copy_sequence, media_id);
-- The file names that an item which waits may get.
CREATE TABLE {schema}.copy_names (
    target_lane   bigint NOT NULL,
    file_name     text   NOT NULL,
    copy_sequence bigint NOT NULL,
    media_id      text   NOT NULL,
    PRIMARY KEY (target_lane, file_name, copy_sequence, media_id),
    FOREIGN KEY (copy_sequence, media_id) REFERENCES {schema}.copy_items (copy_sequence, media_id) ON DELETE CASCADE
);
CREATE INDEX copy_names_item ON {schema}.copy_names (copy_sequence, media_id);
-- lacks: the highest copy into the source that failed to bring the media there.
ALTER TABLE {schema}.copy_items ADD COLUMN lacks bigint NOT NULL DEFAULT 0;

INSERT INTO {schema}.copy_waits (waits_for, media_id, copy_sequence)
    SELECT e.sequence, w.media_id, w.copy_sequence FROM {schema}.copy_items w
    JOIN {schema}.outbox e ON e.lane_id = w.source_lane AND e.media_id = w.media_id AND e.sequence < w.copy_sequence
        AND e.state IN ('available', 'running', 'retryable')
    WHERE w.state = 'waiting'
    UNION
    SELECT i.copy_sequence, w.media_id, w.copy_sequence FROM {schema}.copy_items w
    JOIN {schema}.copy_items i ON i.target_lane = w.source_lane AND i.media_id = w.media_id
        AND i.copy_sequence < w.copy_sequence AND i.state IN ('owed', 'waiting')
    WHERE w.state = 'waiting';
UPDATE {schema}.copy_items SET state = 'failed', error_code = 'source_changed',
    error = 'the copy was cancelled by a deletion of the environment' WHERE state = 'cancelled';
UPDATE {schema}.copy_items AS w SET state = 'failed', error_code = 'source_changed',
    error = 'the media was being changed in its environment while the program was upgraded: retry it'
    WHERE w.state = 'waiting' AND NOT EXISTS (SELECT 1 FROM {schema}.copy_waits x
        WHERE x.copy_sequence = w.copy_sequence AND x.media_id = w.media_id);

-- The trigger's condition decides before the function is called. NOTIFY makes
-- commits wait for one database-wide lock, so at most one open transaction
-- notifies. The key is 'ownb' and the schema.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION {schema}.notify_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('ownbucket_outbox', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;
-- +goose StatementEnd
DROP TRIGGER outbox_notify ON {schema}.outbox;
CREATE TRIGGER outbox_notify AFTER INSERT ON {schema}.outbox FOR EACH STATEMENT
    WHEN (pg_catalog.pg_try_advisory_xact_lock(1870098018, pg_catalog.hashtext('{schema_name}'))) EXECUTE FUNCTION {schema}.notify_outbox();

-- +goose Down
DROP TRIGGER outbox_notify ON {schema}.outbox;
CREATE TRIGGER outbox_notify AFTER INSERT ON {schema}.outbox
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.notify_outbox();
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION {schema}.notify_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.pg_try_advisory_xact_lock(pg_catalog.int8or(8032009827624419328, TG_RELID::pg_catalog.int8)) THEN
        PERFORM pg_catalog.pg_notify('ownbucket_outbox', TG_TABLE_SCHEMA);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
ALTER TABLE {schema}.copy_items DROP COLUMN lacks;
DROP TABLE {schema}.copy_names, {schema}.copy_waits;
ALTER TABLE {schema}.lanes ADD COLUMN emptying_sequence bigint;
ALTER TABLE {schema}.lanes ADD COLUMN last_sequence bigint NOT NULL DEFAULT 0;
-- Whatever an older program had not assigned yet, it finds again; what stands in a
-- lane, it reads again.
UPDATE {schema}.outbox SET requeued = true WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
ALTER TABLE {schema}.outbox DROP COLUMN waits_for, DROP COLUMN waits_for_copy, DROP COLUMN wait_count;
DROP INDEX {schema}.outbox_environments, {schema}.outbox_parked, {schema}.outbox_lane;
CREATE INDEX outbox_unassigned ON {schema}.outbox (sequence) WHERE lane_id IS NULL;
CREATE INDEX outbox_window ON {schema}.outbox (lane_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON {schema}.outbox (lane_id, media_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running', 'retryable');
