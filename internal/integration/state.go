package integration

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// Pause holds an environment's events until Resume. Repeating it is harmless.
func (s *Store) Pause(ctx context.Context, serviceID, environmentID, actor, reason string) error {
	return s.setPaused(ctx, true, "integration pause", serviceID, environmentID, actor, reason)
}

// Resume ends a pause. Events stay held while the integration is blocked, and
// it is then probed at once.
func (s *Store) Resume(ctx context.Context, serviceID, environmentID, actor, reason string) error {
	return s.setPaused(ctx, false, "integration resume", serviceID, environmentID, actor, reason)
}

func (s *Store) setPaused(ctx context.Context, paused bool, action, serviceID, environmentID, actor, reason string) error {
	err := s.change(ctx, action, serviceID, environmentID, actor, reason, func(tx *sqlx.Tx, laneID int64) error {
		_, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {integrations} SET paused = ?, updated_at = {now} WHERE lane_id = ?`), paused, laneID)
		if err != nil {
			return err
		}
		if err := s.probeNow(ctx, tx, laneID); err != nil {
			return err
		}
		return s.deriveHeld(ctx, tx, laneID)
	})
	if err != nil {
		return fmt.Errorf("%s: %s: %w", action, environmentName(serviceID, environmentID), err)
	}
	return nil
}

// firstProbe is how long after an integration was blocked it is first probed.
const firstProbe = time.Second

// Block holds a lane's events, since its customer's account turned us away.
// What blocked first stays the reason. Without settings there is nothing to
// block.
func (s *Store) Block(ctx context.Context, laneID int64, code, reason string) error {
	return s.db.Tx(ctx, func(tx *sqlx.Tx) error { return s.BlockTx(ctx, tx, laneID, code, reason) })
}

// BlockTx is Block in the transaction that settles the event that failed.
func (s *Store) BlockTx(ctx context.Context, tx *sqlx.Tx, laneID int64, code, reason string) error {
	if err := s.lockLane(ctx, tx, laneID); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {integrations} SET blocked_since = {now}, blocked_code = ?, blocked_reason = ?,
			probe_failures = 0, next_probe_at = {now} + ?
		WHERE lane_id = ? AND blocked_since IS NULL`),
		plain(code), plain(reason), firstProbe.Microseconds(), laneID)
	if err != nil {
		return fmt.Errorf("block lane %d: %w", laneID, err)
	}
	return s.deriveHeld(ctx, tx, laneID)
}
