-- +goose Up
CREATE TABLE {schema}.integrations (
    lane_id                bigint  PRIMARY KEY REFERENCES {schema}.lanes,
    environment_service_id text    NOT NULL,
    directory              text    NOT NULL,
    bucket                 text    NOT NULL,
    region                 text    NOT NULL,
    role_arn               text    NOT NULL,
    external_id            text    NOT NULL,
    prefix                 text    NOT NULL,
    custom_domain          text    NOT NULL,
    pin_file_names         boolean NOT NULL,
    memo                   text    NOT NULL,
    distribution_id        text    NOT NULL,
    cdn_prefix             text    NOT NULL,
    bucket_owner           text    NOT NULL DEFAULT '',
    paused                 boolean NOT NULL DEFAULT false,
    blocked_since          bigint,
    blocked_code           text,
    blocked_reason         text,
    next_probe_at          bigint,
    probe_failures         integer NOT NULL DEFAULT 0,
    probe_passed_at        bigint,
    test_skipped_reason    text    NOT NULL DEFAULT '',
    created_at             bigint  NOT NULL,
    updated_at             bigint  NOT NULL
);
CREATE INDEX integrations_bucket ON {schema}.integrations (bucket);
CREATE INDEX integrations_probe ON {schema}.integrations (next_probe_at)
    WHERE blocked_since IS NOT NULL AND NOT paused;

-- What we last stored. A NULL object_key is a tombstone: it keeps an older
-- upload, replayed late, from bringing a deleted file back.
CREATE TABLE {schema}.media_objects (
    lane_id      bigint NOT NULL,
    media_id     text   NOT NULL,
    version      bigint NOT NULL,
    sequence     bigint NOT NULL,
    bucket       text,
    object_key   text,
    content_type text   NOT NULL DEFAULT '',
    size         bigint NOT NULL DEFAULT 0,
    etag         text   NOT NULL DEFAULT '',
    updated_at   bigint NOT NULL,
    PRIMARY KEY (lane_id, media_id)
);
CREATE UNIQUE INDEX media_objects_key ON {schema}.media_objects (bucket, object_key);
CREATE INDEX media_objects_tombstones ON {schema}.media_objects (updated_at) WHERE object_key IS NULL;

-- What an event that ended without completing may have left in the bucket.
CREATE TABLE {schema}.possible_writes (
    lane_id    bigint NOT NULL,
    media_id   text   NOT NULL,
    object_key text   NOT NULL,
    version    bigint NOT NULL,
    created_at bigint NOT NULL,
    PRIMARY KEY (lane_id, media_id, object_key, version)
);

-- A copy is the work that one EnvironmentCreated owes to its environment.
CREATE TABLE {schema}.copies (
    sequence               bigint PRIMARY KEY,
    source_lane            bigint NOT NULL,
    target_lane            bigint NOT NULL,
    environment_service_id text   NOT NULL,
    -- pending: the snapshot is due; planned: it waits for its event;
    -- active: items are copied; ended.
    state                  text   NOT NULL,
    created_at             bigint NOT NULL
);
CREATE INDEX copies_source ON {schema}.copies (source_lane, sequence);
CREATE INDEX copies_open_source ON {schema}.copies (source_lane) WHERE state <> 'ended';
CREATE INDEX copies_open_target ON {schema}.copies (target_lane) WHERE state <> 'ended';
CREATE INDEX copies_target ON {schema}.copies (target_lane, sequence);
CREATE INDEX copies_unfinished ON {schema}.copies (state, sequence) WHERE state <> 'ended';

CREATE TABLE {schema}.copy_items (
    copy_sequence   bigint  NOT NULL REFERENCES {schema}.copies ON DELETE CASCADE,
    media_id        text    NOT NULL,
    source_lane     bigint  NOT NULL,
    target_lane     bigint  NOT NULL,
    source_bucket   text    NOT NULL,
    source_key      text    NOT NULL,
    source_etag     text    NOT NULL,
    file_name       text    NOT NULL,
    version         bigint  NOT NULL,
    content_type    text    NOT NULL,
    size            bigint  NOT NULL,
    -- waiting: joins when earlier events and items of the media have ended;
    -- owed: is copied; done, failed, cancelled.
    state           text    NOT NULL DEFAULT 'owed',
    error_code      text,
    error           text,
    failure_count   integer NOT NULL DEFAULT 0,
    first_failed_at bigint,
    next_attempt_at bigint  NOT NULL DEFAULT 0,
    lease_token     bigint  NOT NULL DEFAULT 0,
    leased_until    bigint,
    -- The event of the target that didn't wait for the media to join: until it
    -- has ended, nothing is copied.
    overtaken_by    bigint,
    -- When the customer's account last denied the item, and how often that was
    -- although a probe had passed since.
    denied_at       bigint,
    denied_count    integer NOT NULL DEFAULT 0,
    -- An attempt whose end isn't known may have left an object.
    may_have_written boolean NOT NULL DEFAULT false,
    PRIMARY KEY (copy_sequence, media_id)
);
CREATE INDEX copy_items_source_media ON {schema}.copy_items (source_lane, media_id) WHERE state = 'owed';
CREATE INDEX copy_items_source_name ON {schema}.copy_items (source_lane, file_name) WHERE state = 'owed';
CREATE INDEX copy_items_target_media ON {schema}.copy_items (target_lane, media_id) WHERE state = 'owed';
CREATE INDEX copy_items_target_name ON {schema}.copy_items (target_lane, file_name) WHERE state = 'owed';
CREATE INDEX copy_items_due ON {schema}.copy_items (copy_sequence, next_attempt_at) WHERE state = 'owed';
CREATE INDEX copy_items_waiting ON {schema}.copy_items (copy_sequence) WHERE state = 'waiting';
CREATE INDEX copy_items_waiting_source ON {schema}.copy_items (source_lane, media_id) WHERE state = 'waiting';
CREATE INDEX copy_items_waiting_target ON {schema}.copy_items (target_lane, media_id) WHERE state = 'waiting';

-- +goose Down
DROP TABLE {schema}.copy_items, {schema}.copies, {schema}.possible_writes, {schema}.media_objects, {schema}.integrations;
