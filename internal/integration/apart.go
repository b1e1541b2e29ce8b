package integration

import (
	"context"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// DirectoryTaken is the code of settings that another environment's deletion
// would reach, or whose own deletion would reach another's files.
const DirectoryTaken = "directory_taken"

// place holds the one rule between integrations, and returns the settings as
// they may be saved. Deleting an environment deletes everything below its key
// prefix, whoever wrote it, so no other integration's keys in that bucket may
// stand there, in whichever order the two were set up. Integrations of production
// may share a prefix: the ledger knows whose each key is.
//
// A directory that another service stands in the way of gets another name. Its
// usual name is known before the environment is made, so anybody could take it.
func (s *Store) place(ctx context.Context, tx *sqlx.Tx, laneID int64, settings Settings) (Settings, error) {
	if err := s.lockSettings(ctx, tx); err != nil {
		return settings, err
	}
	var others []Settings // those of the same service first
	err := tx.SelectContext(ctx, &others, s.db.SQL(`
		SELECT l.service_id, l.environment_id, i.prefix, i.directory
		FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		WHERE i.bucket = ? AND i.lane_id <> ? ORDER BY l.service_id <> ?`), settings.Bucket, laneID, settings.ServiceID)
	if err != nil {
		return settings, fmt.Errorf("look for other settings in bucket %q: %w", settings.Bucket, err)
	}
	with := conflict(settings, others)
	if with != nil && with.ServiceID != settings.ServiceID && settings.Directory != "" {
		settings.Directory = bucket.AnotherDirectory(settings.EnvironmentServiceID)
		with = conflict(settings, others)
	}
	if with != nil {
		return settings, taken(settings, *with)
	}
	return settings, nil
}

// conflict returns the first of the others that a deletion would tie the
// settings to, if there is one.
func conflict(settings Settings, others []Settings) *Settings {
	for n, other := range others {
		if reaches(other, settings) || reaches(settings, other) {
			return &others[n]
		}
	}
	return nil
}

// reaches tells whether the deletion of one environment would delete keys of
// another integration in its bucket. Production is never deleted.
func reaches(deleted, other Settings) bool {
	return deleted.Directory != "" && strings.HasPrefix(other.KeyPrefix(), deleted.KeyPrefix())
}

// taken tells of another environment only within its own service: what other
// services have in a bucket is no business of this one.
func taken(settings, other Settings) error {
	fault := fmt.Sprintf("%q is taken", settings.KeyPrefix())
	switch {
	case other.ServiceID != settings.ServiceID:
	case reaches(other, settings):
		fault = fmt.Sprintf("%q lies within the directory %q of %s, with which it would be deleted",
			settings.KeyPrefix(), other.KeyPrefix(), other)
	default:
		fault = fmt.Sprintf("%q contains %q of %s, which would be deleted with this environment",
			settings.KeyPrefix(), other.KeyPrefix(), other)
	}
	return failure.New(failure.Permanent, DirectoryTaken, "%w",
		&FieldError{"prefix", fault + ": choose another prefix", ruleEnvironment})
}

// lockSettings lets one transaction at a time look whether other settings are in the
// way, and save its own: two that don't see each other could each find nothing. It
// locks the table against such changes alone, which takes the right to write to it.
func (s *Store) lockSettings(ctx context.Context, tx *sqlx.Tx) error {
	if s.db.Dialect == database.SQLite {
		return nil // one writer
	}
	const patience = `SET LOCAL lock_timeout = '30s'`
	if _, err := tx.ExecContext(ctx, patience); err != nil {
		return fmt.Errorf("lock the settings: %w", err)
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`LOCK TABLE {integrations} IN SHARE UPDATE EXCLUSIVE MODE`)); err != nil {
		return fmt.Errorf("lock the settings, which another change or a VACUUM of table integrations may be holding: %w", err)
	}
	return nil
}
