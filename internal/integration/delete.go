package integration

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// Delete removes an environment's settings; ErrLocked while anything depends
// on them. Events that wait are released, and find that there are none.
func (s *Store) Delete(ctx context.Context, serviceID, environmentID, actor, reason string) error {
	err := s.change(ctx, "integration delete", serviceID, environmentID, actor, reason,
		func(tx *sqlx.Tx, laneID int64) error {
			if err := s.requireUnlocked(ctx, tx, laneID); err != nil {
				return err
			}
			return s.Remove(ctx, tx, laneID)
		})
	if err != nil {
		return fmt.Errorf("delete the settings of %s: %w", environmentName(serviceID, environmentID), err)
	}
	return nil
}

// Remove drops a lane's settings, if any, whatever depends on them: the end
// of an environment's deletion.
func (s *Store) Remove(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	if err := s.lockLane(ctx, tx, laneID); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`DELETE FROM {integrations} WHERE lane_id = ?`), laneID); err != nil {
		return fmt.Errorf("delete the settings of lane %d: %w", laneID, err)
	}
	return s.deriveHeld(ctx, tx, laneID)
}

// SetOwner records the AWS account that the bucket was seen to belong to.
func (s *Store) SetOwner(ctx context.Context, laneID int64, owner string) error {
	if fault := ownerFault(owner); fault != "" {
		return &FieldError{"bucket_owner", fault, ruleOwner}
	}
	_, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {integrations} SET bucket_owner = ? WHERE lane_id = ?`), owner, laneID)
	if err != nil {
		return fmt.Errorf("record the bucket's owner for lane %d: %w", laneID, err)
	}
	return nil
}
