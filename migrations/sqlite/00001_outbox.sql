-- Times and versions are microseconds since 1970-01-01 UTC, the same in both
-- databases; see docs/decisions/0002-microseconds.md.

-- +goose Up
CREATE TABLE outbox (
    -- What a publisher writes. The table refuses NULLs, non-UUIDs and non-JSON
    -- only, so that no publisher's transaction is aborted for its content.
    sequence           INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id           TEXT   NOT NULL COLLATE NOCASE CONSTRAINT outbox_event_id_key UNIQUE
        CHECK (event_id GLOB replace('HHHHHHHH-HHHH-HHHH-HHHH-HHHHHHHHHHHH', 'H', '[0-9A-Fa-f]')),
    type               TEXT   NOT NULL,
    service_id         TEXT   NOT NULL,
    environment_id     TEXT   NOT NULL DEFAULT '',
    data               TEXT   NOT NULL CHECK (json_valid(data)),
    metadata           TEXT   NOT NULL DEFAULT '{}' CHECK (json_valid(metadata)),
    created_at         INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),

    -- What assigning adds, read from data by Go. NULL lane_id: not assigned yet.
    lane_id            INTEGER,
    media_id           TEXT,
    version            INTEGER,
    -- What orders the event within its lane: a JSON array of 'm:MEDIA',
    -- 'n:FILE NAME', or '*' for an event that concerns the whole environment.
    resources          TEXT,

    state              TEXT    NOT NULL DEFAULT 'available',
    outcome            TEXT,
    -- parked: outside the lane's reading window, until next_attempt_at or, where
    -- that is NULL, until an earlier event with a common resource has ended.
    parked             INTEGER NOT NULL DEFAULT FALSE,
    -- requeued: to be read although the lane's reading position may be past it.
    requeued           INTEGER NOT NULL DEFAULT FALSE,
    -- holding: has rows in holds.
    holding            INTEGER NOT NULL DEFAULT FALSE,
    next_attempt_at    INTEGER,

    -- attempt_count counts attempts that used up a try; recorded_count numbers
    -- the rows of attempts; failure_count is what the retry limit looks at.
    attempt_count      INTEGER NOT NULL DEFAULT 0,
    recorded_count     INTEGER NOT NULL DEFAULT 0,
    failure_count      INTEGER NOT NULL DEFAULT 0,
    -- When the customer's account last denied this event, and how often that
    -- was although a probe had passed since.
    denied_at          INTEGER,
    denied_count       INTEGER NOT NULL DEFAULT 0,
    lapse_count        INTEGER NOT NULL DEFAULT 0,
    -- The facts of a first attempt that succeeded; others are rows of attempts.
    started_at         INTEGER,
    duration_us        INTEGER,
    worker             TEXT,
    error_class        TEXT,
    error_code         TEXT,
    error              TEXT,
    finished_at        INTEGER
);
CREATE INDEX outbox_unassigned ON outbox (sequence) WHERE lane_id IS NULL;
CREATE INDEX outbox_window ON outbox (lane_id, sequence)
    WHERE state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_requeued ON outbox (lane_id, sequence)
    WHERE requeued AND state IN ('available', 'running') AND NOT parked;
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX outbox_unfinished ON outbox (lane_id, media_id, sequence)
    WHERE state IN ('available', 'running', 'retryable');
CREATE INDEX outbox_running ON outbox (lane_id) WHERE state = 'running';
CREATE INDEX outbox_dead ON outbox (lane_id, media_id, sequence) WHERE state = 'dead';

CREATE TABLE attempts (
    sequence       INTEGER  NOT NULL REFERENCES outbox ON DELETE CASCADE,
    number         INTEGER NOT NULL,
    started_at     INTEGER  NOT NULL,
    duration_us    INTEGER  NOT NULL,
    worker         TEXT    NOT NULL,
    error_class    TEXT,
    error_code     TEXT,
    error          TEXT,
    aws_request_id TEXT,
    PRIMARY KEY (sequence, number)
);

-- A lane is one environment of one service.
CREATE TABLE lanes (
    lane_id           INTEGER PRIMARY KEY AUTOINCREMENT,
    service_id        TEXT    NOT NULL,
    environment_id    TEXT    NOT NULL,
    -- held: the integration is blocked or paused; its events stay where they are.
    held              INTEGER NOT NULL DEFAULT FALSE,
    -- wake counts the reasons to look again; a holder that gives the lane back
    -- as drained does so only if it has seen the last of them.
    wake              INTEGER  NOT NULL DEFAULT 0,
    ready_at          INTEGER,
    -- No unfinished event that isn't parked or requeued stands at or below.
    read_from         INTEGER  NOT NULL DEFAULT 0,
    last_sequence     INTEGER  NOT NULL DEFAULT 0,
    -- The fencing token: only its holder may complete events of the lane.
    lease_token       INTEGER  NOT NULL DEFAULT 0,
    leased_by         TEXT,
    leased_until      INTEGER,
    lapse_count       INTEGER NOT NULL DEFAULT 0,
    -- An unfinished event at or below may have been started by a worker that died.
    tainted_to        INTEGER  NOT NULL DEFAULT 0,
    started           INTEGER NOT NULL DEFAULT FALSE,
    -- The sequence of the last EnvironmentDeleted that completed.
    deleted_sequence  INTEGER  NOT NULL DEFAULT 0,
    -- Events above wait for a snapshot of this environment.
    gate_sequence     INTEGER,
    -- The highest EnvironmentCreated whose snapshot of this environment was taken.
    snapshot_sequence INTEGER  NOT NULL DEFAULT 0,
    CONSTRAINT lanes_environment_key UNIQUE (service_id, environment_id)
);
CREATE INDEX lanes_claimable ON lanes (ready_at)
    WHERE ready_at IS NOT NULL AND leased_by IS NULL AND NOT held;
CREATE INDEX lanes_leased ON lanes (leased_until) WHERE leased_by IS NOT NULL;

-- What a parked event, and the event it waits for, hold back: events of the
-- lane with a common resource and a higher sequence.
CREATE TABLE holds (
    lane_id  INTEGER NOT NULL,
    resource TEXT   NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (lane_id, resource, sequence)
);
CREATE INDEX holds_sequence ON holds (sequence);

CREATE TABLE audit (
    audit_id INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    actor    TEXT   NOT NULL,
    action   TEXT   NOT NULL,
    target   TEXT   NOT NULL,
    reason   TEXT   NOT NULL,
    changed  INTEGER NOT NULL
);

-- +goose Down
DROP TABLE audit;
DROP TABLE holds;
DROP TABLE attempts;
DROP TABLE lanes;
DROP TABLE outbox;
