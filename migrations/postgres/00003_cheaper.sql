-- What a publisher's INSERT costs the CMS: one index of ours beside the table's
-- keys, and a trigger that looks up its names without setting a search path.

-- +goose Up
DROP INDEX {schema}.outbox_window;
DROP INDEX {schema}.outbox_unfinished;
CREATE INDEX outbox_window ON {schema}.outbox (lane_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON {schema}.outbox (lane_id, media_id, sequence)
    WHERE lane_id IS NOT NULL AND state IN ('available', 'running', 'retryable');

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION {schema}.notify_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The key is 'ownb' and the table's number.
    IF pg_catalog.pg_try_advisory_xact_lock(pg_catalog.int8or(8032009827624419328, TG_RELID::pg_catalog.int8)) THEN
        PERFORM pg_catalog.pg_notify('ownbucket_outbox', TG_TABLE_SCHEMA);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- A lane's row changes with each lease, wake-up and release: free space in its
-- page lets most changes leave the indexes alone.
ALTER TABLE {schema}.lanes SET (fillfactor = 50);

-- +goose Down
ALTER TABLE {schema}.lanes RESET (fillfactor);
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION {schema}.notify_outbox() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog AS $$
BEGIN
    IF pg_try_advisory_xact_lock(hashtext('ownbucket'), hashtext(TG_RELID::text)) THEN
        PERFORM pg_notify('ownbucket_outbox', TG_TABLE_SCHEMA);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
DROP INDEX {schema}.outbox_window;
DROP INDEX {schema}.outbox_unfinished;
CREATE INDEX outbox_window ON {schema}.outbox (lane_id, sequence)
    WHERE state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_unfinished ON {schema}.outbox (lane_id, media_id, sequence)
    WHERE state IN ('available', 'running', 'retryable');
