-- A vacuum reads all indexes of the outbox, however little is dead: where it is
-- throttled, it takes the longer the more has been published, and dead rows grow
-- with the table. It runs as fast as it can, and comes earlier still.

-- +goose Up
ALTER TABLE {schema}.outbox SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- +goose Down
ALTER TABLE {schema}.outbox SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE {schema}.outbox RESET (autovacuum_vacuum_cost_delay);
