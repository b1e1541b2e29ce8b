package integration

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// requireOwnAccess keeps a service out of the account of another one's customer:
// role ARNs are no secrets, and a role only asks for an external ID. The
// environments of one service may share theirs. Two services share a role where an
// operator says so, and never an external ID.
func (s *Store) requireOwnAccess(ctx context.Context, tx *sqlx.Tx, settings Settings, mayShareRole bool) error {
	if err := s.lockSettings(ctx, tx); err != nil {
		return err
	}
	var shared struct {
		ExternalID bool `db:"external_id"`
		Role       bool `db:"role"`
	}
	const others = `SELECT EXISTS (SELECT 1 FROM {integrations} i JOIN {lanes} l ON l.lane_id = i.lane_id WHERE l.service_id <> ?`
	if err := tx.GetContext(ctx, &shared, s.db.SQL(`
		SELECT (`+others+` AND i.external_id = ?)) AS external_id, (`+others+` AND i.role_arn = ?)) AS role`),
		settings.ServiceID, settings.ExternalID, settings.ServiceID, settings.RoleARN); err != nil {
		return fmt.Errorf("look for other services with that role or external ID: %w", err)
	}
	switch {
	case shared.ExternalID:
		return &FieldError{"external_id", "is another service's: give this service one of its own, which its role asks for", ruleAccess}
	case shared.Role && !mayShareRole:
		return &FieldError{"role_arn", "is another service's: have the customer make one for this service, or confirm that both may use it", ruleAccess}
	}
	return nil
}
