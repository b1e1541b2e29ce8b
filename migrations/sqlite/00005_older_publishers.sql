-- A publisher's INSERT runs in the publisher's own SQLite: releases before 3.42
-- know no 'subsec', those before 3.38 no unixepoch.

-- +goose Up
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'CAST(unixepoch(''subsec'') * 1000000 AS INTEGER)',
    'CAST(round((julianday(''now'') - 2440587.5) * 86400000) AS INTEGER) * 1000')
    WHERE type = 'table' AND name = 'outbox';
PRAGMA writable_schema = RESET;
-- Other processes that have the database open read it anew after a change.
CREATE TABLE changed (x);
DROP TABLE changed;

-- +goose Down
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'CAST(round((julianday(''now'') - 2440587.5) * 86400000) AS INTEGER) * 1000',
    'CAST(unixepoch(''subsec'') * 1000000 AS INTEGER)')
    WHERE type = 'table' AND name = 'outbox';
PRAGMA writable_schema = RESET;
CREATE TABLE changed (x);
DROP TABLE changed;
