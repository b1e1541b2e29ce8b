package integration

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
)

// CopySettings gives a new environment the settings of its source (manual:
// 複数環境での取り扱い), never over existing ones. Nothing is copied where the
// source has none; whether the source is blocked or paused isn't either. It is
// a permanent failure where the environment's directory is in the way of another
// integration of its service, or its prefix is in another's directory. The caller's
// transaction holds the target's lane, or takes it here.
func (s *Store) CopySettings(ctx context.Context, tx *sqlx.Tx, sourceLane, targetLane int64, environmentServiceID string) error {
	err := s.copySettings(ctx, tx, sourceLane, targetLane, environmentServiceID)
	if err != nil {
		return fmt.Errorf("copy settings from lane %d to lane %d: %w", sourceLane, targetLane, err)
	}
	return nil
}

func (s *Store) copySettings(ctx context.Context, tx *sqlx.Tx, sourceLane, targetLane int64, environmentServiceID string) error {
	if err := s.lockLane(ctx, tx, targetLane); err != nil {
		return err
	}
	if _, exists, err := s.ByLane(ctx, tx, targetLane); err != nil || exists {
		return err
	}
	source, exists, err := s.ByLane(ctx, tx, sourceLane)
	if err != nil || !exists {
		return err
	}
	settings := source.Settings
	settings.EnvironmentServiceID = environmentServiceID
	settings.Directory = bucket.Directory(environmentServiceID)
	err = tx.QueryRowxContext(ctx, s.db.SQL(`
		SELECT service_id, environment_id FROM {lanes} WHERE lane_id = ?`), targetLane).
		Scan(&settings.ServiceID, &settings.EnvironmentID)
	if err != nil {
		return err
	}
	if settings.EnvironmentID == "" {
		return errors.New("production is no copy of another environment")
	}
	if settings, err = s.place(ctx, tx, targetLane, settings); err != nil {
		return err
	}
	return s.write(ctx, tx, targetLane, settings, source.TestSkippedReason)
}
