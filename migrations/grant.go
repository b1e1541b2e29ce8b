package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// GrantPublisher lets a PostgreSQL role publish events and do nothing else:
// insert into the outbox, and read back event_id, which ON CONFLICT needs.
// It gives no right to read events or settings.
func GrantPublisher(ctx context.Context, db *database.DB, role string) error {
	if db.Dialect != database.PostgreSQL {
		return errors.New("roles exist on PostgreSQL only: on SQLite whoever may write the file may publish")
	}
	return db.Tx(ctx, func(tx *sqlx.Tx) error {
		var exists bool
		err := tx.GetContext(ctx, &exists, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)`, role)
		if err != nil {
			return fmt.Errorf("look up role %q: %w", role, err)
		}
		if !exists {
			return fmt.Errorf("role %q does not exist: create it with CREATE ROLE first", role)
		}
		for _, grant := range []string{
			`GRANT USAGE ON SCHEMA ` + quote(db.Schema) + ` TO ` + quote(role),
			`GRANT INSERT, SELECT (event_id) ON ` + db.SQL(`{outbox}`) + ` TO ` + quote(role),
		} {
			if _, err := tx.ExecContext(ctx, grant); err != nil {
				return fmt.Errorf("grant publishing to role %q: %w", role, err)
			}
		}
		// Who has some rights, but not that of granting them, gets a warning only.
		var granted bool
		if err := tx.GetContext(ctx, &granted, `SELECT has_schema_privilege($1, $2, 'USAGE') AND has_table_privilege($1, $3, 'INSERT')
			AND has_column_privilege($1, $3, 'event_id', 'SELECT')`, role, db.Schema, db.SQL(`{outbox}`)); err != nil {
			return fmt.Errorf("look up what role %q may do: %w", role, err)
		}
		if !granted {
			return fmt.Errorf("grant publishing to role %q: connect as the owner of schema %s and its tables, who may grant this",
				role, db.Schema)
		}
		return nil
	})
}

// quote makes any text one PostgreSQL identifier.
func quote(identifier string) string {
	return `"` + strings.ReplaceAll(identifier, `"`, `""`) + `"`
}
