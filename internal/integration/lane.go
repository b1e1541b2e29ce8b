package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
)

// makeLane finds or creates the environment's lane, and locks it against
// events that would begin to depend on the settings.
func (s *Store) makeLane(ctx context.Context, tx *sqlx.Tx, serviceID, environmentID string) (laneID int64, err error) {
	// The identity rules come before a row is made of them.
	identity := Settings{ServiceID: serviceID, EnvironmentID: environmentID}
	if environmentID != "" {
		identity.EnvironmentServiceID, identity.Directory = "-", "-"
	}
	if err := errors.Join(identity.environmentFaults()...); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {lanes} (service_id, environment_id) VALUES (?, ?)
		ON CONFLICT (service_id, environment_id) DO NOTHING`), serviceID, environmentID)
	if err != nil {
		return 0, fmt.Errorf("make the lane: %w", err)
	}
	return s.findLane(ctx, tx, serviceID, environmentID)
}

func (s *Store) findLane(ctx context.Context, tx *sqlx.Tx, serviceID, environmentID string) (laneID int64, err error) {
	err = tx.GetContext(ctx, &laneID, s.db.SQL(`
		SELECT lane_id FROM {lanes} WHERE service_id = ? AND environment_id = ? {for_update}`),
		serviceID, environmentID)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("lock the lane: %w", err)
	}
	return laneID, nil
}

// lockLane locks a lane that the caller's transaction may have locked already.
func (s *Store) lockLane(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	var locked int64
	err := tx.GetContext(ctx, &locked, s.db.SQL(`
		SELECT lane_id FROM {lanes} WHERE lane_id = ? {for_no_key_update}`), laneID)
	if err != nil {
		return fmt.Errorf("lock lane %d: %w", laneID, err)
	}
	return nil
}

// deriveHeld keeps lanes.held equal to "blocked or paused". A lane that is
// released is looked at again by whoever holds it, or by the next to claim.
func (s *Store) deriveHeld(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} AS l SET held = h.held,
			wake = CASE WHEN l.held AND NOT h.held THEN l.wake + 1 ELSE l.wake END,
			ready_at = CASE WHEN l.held AND NOT h.held THEN coalesce(l.ready_at, {now}) ELSE l.ready_at END
		FROM (SELECT EXISTS (SELECT 1 FROM {integrations}
			WHERE lane_id = ? AND (paused OR blocked_since IS NOT NULL)) AS held) AS h
		WHERE l.lane_id = ? AND l.held <> h.held`), laneID, laneID)
	if err != nil {
		return fmt.Errorf("hold or release lane %d: %w", laneID, err)
	}
	return nil
}

// change runs fn on an environment's settings, whose lane is locked, and
// writes the audit.
func (s *Store) change(ctx context.Context, action, serviceID, environmentID, actor, reason string,
	fn func(tx *sqlx.Tx, laneID int64) error) error {
	return s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		laneID, err := s.findLane(ctx, tx, serviceID, environmentID)
		if err != nil {
			return err
		}
		if _, exists, err := s.ByLane(ctx, tx, laneID); err != nil {
			return err
		} else if !exists {
			return ErrNotFound
		}
		if err := fn(tx, laneID); err != nil {
			return err
		}
		return s.audit(ctx, tx, action, environmentName(serviceID, environmentID), actor, reason)
	})
}

func (s *Store) audit(ctx context.Context, tx *sqlx.Tx, action, target, actor, reason string) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		INSERT INTO {audit} (at, actor, action, target, reason, changed) VALUES ({now}, ?, ?, ?, ?, 1)`),
		plain(actor), action, plain(target), plain(reason))
	if err != nil {
		return fmt.Errorf("write the audit: %w", err)
	}
	return nil
}

// plain makes a text fit for both databases: valid UTF-8 without NUL.
func plain(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
