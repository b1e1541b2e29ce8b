-- +goose Up
CREATE TABLE integrations (
    lane_id                INTEGER  PRIMARY KEY REFERENCES lanes,
    environment_service_id TEXT    NOT NULL,
    directory              TEXT    NOT NULL,
    bucket                 TEXT    NOT NULL,
    region                 TEXT    NOT NULL,
    role_arn               TEXT    NOT NULL,
    external_id            TEXT    NOT NULL,
    prefix                 TEXT    NOT NULL,
    custom_domain          TEXT    NOT NULL,
    pin_file_names         INTEGER NOT NULL,
    memo                   TEXT    NOT NULL,
    distribution_id        TEXT    NOT NULL,
    cdn_prefix             TEXT    NOT NULL,
    bucket_owner           TEXT    NOT NULL DEFAULT '',
    paused                 INTEGER NOT NULL DEFAULT FALSE,
    blocked_since          INTEGER,
    blocked_code           TEXT,
    blocked_reason         TEXT,
    next_probe_at          INTEGER,
    probe_failures         INTEGER NOT NULL DEFAULT 0,
    probe_passed_at        INTEGER,
    test_skipped_reason    TEXT    NOT NULL DEFAULT '',
    created_at             INTEGER  NOT NULL,
    updated_at             INTEGER  NOT NULL
);
CREATE INDEX integrations_bucket ON integrations (bucket);
CREATE INDEX integrations_probe ON integrations (next_probe_at)
    WHERE blocked_since IS NOT NULL AND NOT paused;

-- What we last stored. A NULL object_key is a tombstone: it keeps an older
-- upload, replayed late, from bringing a deleted file back.
CREATE TABLE media_objects (
    lane_id      INTEGER NOT NULL,
    media_id     TEXT   NOT NULL,
    version      INTEGER NOT NULL,
    sequence     INTEGER NOT NULL,
    bucket       TEXT,
    object_key   TEXT,
    content_type TEXT   NOT NULL DEFAULT '',
    size         INTEGER NOT NULL DEFAULT 0,
    etag         TEXT   NOT NULL DEFAULT '',
    updated_at   INTEGER NOT NULL,
    PRIMARY KEY (lane_id, media_id)
);
CREATE UNIQUE INDEX media_objects_key ON media_objects (bucket, object_key);
CREATE INDEX media_objects_tombstones ON media_objects (updated_at) WHERE object_key IS NULL;

-- What an event that ended without completing may have left in the bucket.
CREATE TABLE possible_writes (
    lane_id    INTEGER NOT NULL,
    media_id   TEXT   NOT NULL,
    object_key TEXT   NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (lane_id, media_id, object_key, version)
);

-- A copy is the work that one EnvironmentCreated owes to its environment.
CREATE TABLE copies (
    sequence               INTEGER PRIMARY KEY,
    source_lane            INTEGER NOT NULL,
    target_lane            INTEGER NOT NULL,
    environment_service_id TEXT   NOT NULL,
    -- pending: the snapshot is due; planned: it waits for its event;
    -- active: items are copied; ended.
    state                  TEXT   NOT NULL,
    created_at             INTEGER NOT NULL
);
CREATE INDEX copies_source ON copies (source_lane, sequence);
CREATE INDEX copies_open_source ON copies (source_lane) WHERE state <> 'ended';
CREATE INDEX copies_open_target ON copies (target_lane) WHERE state <> 'ended';
CREATE INDEX copies_target ON copies (target_lane, sequence);
CREATE INDEX copies_unfinished ON copies (state, sequence) WHERE state <> 'ended';

CREATE TABLE copy_items (
    copy_sequence   INTEGER  NOT NULL REFERENCES copies ON DELETE CASCADE,
    media_id        TEXT    NOT NULL,
    source_lane     INTEGER  NOT NULL,
    target_lane     INTEGER  NOT NULL,
    source_bucket   TEXT    NOT NULL,
    source_key      TEXT    NOT NULL,
    source_etag     TEXT    NOT NULL,
    file_name       TEXT    NOT NULL,
    version         INTEGER  NOT NULL,
    content_type    TEXT    NOT NULL,
    size            INTEGER  NOT NULL,
    -- waiting: joins when earlier events and items of the media have ended;
    -- owed: is copied; done, failed, cancelled.
    state           TEXT    NOT NULL DEFAULT 'owed',
    error_code      TEXT,
    error           TEXT,
    failure_count   INTEGER NOT NULL DEFAULT 0,
    first_failed_at INTEGER,
    next_attempt_at INTEGER  NOT NULL DEFAULT 0,
    lease_token     INTEGER  NOT NULL DEFAULT 0,
    leased_until    INTEGER,
    -- The event of the target that didn't wait for the media to join: until it
    -- has ended, nothing is copied.
    overtaken_by    INTEGER,
    -- When the customer's account last denied the item, and how often that was
    -- although a probe had passed since.
    denied_at       INTEGER,
    denied_count    INTEGER NOT NULL DEFAULT 0,
    -- An attempt whose end isn't known may have left an object.
    may_have_written INTEGER NOT NULL DEFAULT FALSE,
    PRIMARY KEY (copy_sequence, media_id)
);
CREATE INDEX copy_items_source_media ON copy_items (source_lane, media_id) WHERE state = 'owed';
CREATE INDEX copy_items_source_name ON copy_items (source_lane, file_name) WHERE state = 'owed';
CREATE INDEX copy_items_target_media ON copy_items (target_lane, media_id) WHERE state = 'owed';
CREATE INDEX copy_items_target_name ON copy_items (target_lane, file_name) WHERE state = 'owed';
CREATE INDEX copy_items_due ON copy_items (copy_sequence, next_attempt_at) WHERE state = 'owed';
CREATE INDEX copy_items_waiting ON copy_items (copy_sequence) WHERE state = 'waiting';
CREATE INDEX copy_items_waiting_source ON copy_items (source_lane, media_id) WHERE state = 'waiting';
CREATE INDEX copy_items_waiting_target ON copy_items (target_lane, media_id) WHERE state = 'waiting';

-- +goose Down
DROP TABLE copy_items;
DROP TABLE copies;
DROP TABLE possible_writes;
DROP TABLE media_objects;
DROP TABLE integrations;
