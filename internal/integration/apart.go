package integration

import (
	"context"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// DirectoryTaken is the code of settings that another environment's deletion
// would reach, or whose own deletion would reach another's files.
const DirectoryTaken = "directory_taken"

// requireApart holds the one rule between integrations. Deleting an
// environment deletes everything below its key prefix, whoever wrote it, so no
// other integration's keys in that bucket may stand there, in whichever order
// the two were set up. Integrations of production may share a prefix: the
// ledger knows whose each key is.
func (s *Store) requireApart(ctx context.Context, tx *sqlx.Tx, laneID int64, settings Settings) error {
	if err := s.lockSettings(ctx, tx); err != nil {
		return err
	}
	var others []Settings
	err := tx.SelectContext(ctx, &others, s.db.SQL(`
		SELECT l.service_id, l.environment_id, i.prefix, i.directory
		FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
		WHERE i.bucket = ? AND i.lane_id <> ?`), settings.Bucket, laneID)
	if err != nil {
		return fmt.Errorf("look for other settings in bucket %q: %w", settings.Bucket, err)
	}
	for _, other := range others {
		if reaches(other, settings) {
			return taken(settings, "lies within the directory %q of %s, with which it would be deleted: choose another prefix",
				other.KeyPrefix(), other)
		}
		if reaches(settings, other) {
			return taken(settings, "contains %q of %s, which would be deleted with this environment: choose another prefix",
				other.KeyPrefix(), other)
		}
	}
	return nil
}

// reaches tells whether the deletion of one environment would delete keys of
// another integration in its bucket. Production is never deleted.
func reaches(deleted, other Settings) bool {
	return deleted.Directory != "" && strings.HasPrefix(other.KeyPrefix(), deleted.KeyPrefix())
}

func taken(settings Settings, format string, args ...any) error {
	fault := &FieldError{"prefix", fmt.Sprintf("%q "+format, append([]any{settings.KeyPrefix()}, args...)...), ruleEnvironment}
	return failure.New(failure.Permanent, DirectoryTaken, "%w", fault)
}

// lockSettings lets one transaction at a time put settings into a bucket: two that
// don't see each other could each find the bucket free. It locks the table, against
// nothing else but such a change, as only those may who may write to it.
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
