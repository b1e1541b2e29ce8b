-- A publisher writes event_id, type, service_id, environment_id, data and metadata.
-- SQLite knows no rights on columns and takes any type in each, so the table sees to
-- it. It does so in the publisher's own SQLite, which may be old.

-- +goose Up
-- One sequence near the end of the numbers would be the last one.
-- +goose StatementBegin
CREATE TRIGGER outbox_sequence AFTER INSERT ON outbox
WHEN NEW.sequence - coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) NOT BETWEEN 1 AND 4294967296
BEGIN
    SELECT RAISE(ABORT, 'the outbox gives the sequence: leave it out of the INSERT');
END;
-- +goose StatementEnd

-- A row that says more than a publisher may say, or says it in bytes, is put right:
-- the publisher's transaction goes on. Where another row has the event's ID, as text,
-- the event was repeated.
-- +goose StatementBegin
CREATE TRIGGER outbox_published AFTER INSERT ON outbox
WHEN NEW.state <> 'available'
    OR coalesce(NEW.lane_id, NEW.media_id, NEW.version, NEW.resources, NEW.outcome, NEW.next_attempt_at, NEW.denied_at,
        NEW.started_at, NEW.duration_us, NEW.worker, NEW.error_class, NEW.error_code, NEW.error, NEW.finished_at,
        NEW.waits_for, NEW.waits_for_copy) IS NOT NULL
    OR NEW.parked <> 0 OR NEW.requeued <> 0 OR NEW.holding <> 0
    OR NEW.attempt_count <> 0 OR NEW.recorded_count <> 0 OR NEW.failure_count <> 0
    OR NEW.denied_count <> 0 OR NEW.lapse_count <> 0 OR NEW.wait_count <> 0
    OR typeof(NEW.created_at) <> 'integer'
    OR 'blob' IN (typeof(NEW.event_id), typeof(NEW.type), typeof(NEW.service_id), typeof(NEW.environment_id),
        typeof(NEW.data), typeof(NEW.metadata))
BEGIN
    DELETE FROM outbox WHERE sequence = NEW.sequence AND typeof(event_id) = 'blob'
        AND EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = CAST(NEW.event_id AS TEXT));
    UPDATE outbox SET
        event_id = CAST(event_id AS TEXT), type = CAST(type AS TEXT), service_id = CAST(service_id AS TEXT),
        environment_id = CAST(environment_id AS TEXT), data = CAST(data AS TEXT), metadata = CAST(metadata AS TEXT),
        created_at = CASE WHEN typeof(created_at) = 'integer' THEN created_at
            ELSE CAST(round((coalesce(julianday(created_at), julianday('now')) - 2440587.5) * 86400000) AS INTEGER) * 1000 END,
        state = 'available', lane_id = NULL, media_id = NULL, version = NULL, resources = NULL, outcome = NULL,
        next_attempt_at = NULL, denied_at = NULL, started_at = NULL, duration_us = NULL, worker = NULL,
        error_class = NULL, error_code = NULL, error = NULL, finished_at = NULL, waits_for = NULL, waits_for_copy = NULL,
        parked = FALSE, requeued = FALSE, holding = FALSE, attempt_count = 0, recorded_count = 0, failure_count = 0,
        denied_count = 0, lapse_count = 0, wait_count = 0
    WHERE sequence = NEW.sequence;
END;
-- +goose StatementEnd

-- What was published before.
UPDATE OR IGNORE outbox SET
    event_id = CAST(event_id AS TEXT), type = CAST(type AS TEXT), service_id = CAST(service_id AS TEXT),
    environment_id = CAST(environment_id AS TEXT), data = CAST(data AS TEXT), metadata = CAST(metadata AS TEXT),
    created_at = CASE WHEN typeof(created_at) = 'integer' THEN created_at
        ELSE CAST(round((coalesce(julianday(created_at), julianday('now')) - 2440587.5) * 86400000) AS INTEGER) * 1000 END
    WHERE typeof(created_at) <> 'integer' OR 'blob' IN (typeof(event_id), typeof(type), typeof(service_id),
        typeof(environment_id), typeof(data), typeof(metadata));

-- +goose Down
DROP TRIGGER outbox_published;
DROP TRIGGER outbox_sequence;
