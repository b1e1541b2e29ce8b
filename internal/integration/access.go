package integration

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// requireOwnAccess keeps a service out of the account of another one's customer:
// role ARNs are no secrets, and a role only asks for an external ID. The
// environments of one service may share theirs.
func (s *Store) requireOwnAccess(ctx context.Context, tx *sqlx.Tx, settings Settings) error {
	if err := s.lockSettings(ctx, tx); err != nil {
		return err
	}
	var shared bool
	if err := tx.GetContext(ctx, &shared, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id
			WHERE l.service_id <> ? AND i.external_id = ?)`), settings.ServiceID, settings.ExternalID); err != nil {
		return fmt.Errorf("look for other services with that external ID: %w", err)
	}
	if shared {
		return &FieldError{"external_id", "is another service's: give this service one of its own, which its role asks for", ruleAccess}
	}
	return nil
}
