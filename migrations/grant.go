package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// published are the columns of the outbox that a publisher writes.
var published = []string{"event_id", "type", "service_id", "environment_id", "data", "metadata"}

// GrantPublisher lets a PostgreSQL role publish events and do nothing else:
// insert the columns of the contract into the outbox, and read back event_id,
// which ON CONFLICT needs. It gives no right to read events or settings, and takes
// that of writing other columns, which older releases gave.
func GrantPublisher(ctx context.Context, db *database.DB, role string) error {
	if db.Dialect != database.PostgreSQL {
		return errors.New("roles exist on PostgreSQL only: on SQLite whoever may write the file may publish")
	}
	return db.Tx(ctx, func(tx *sqlx.Tx) error {
		var exists, owns bool
		err := tx.QueryRowxContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1), EXISTS (SELECT 1 FROM pg_class
			WHERE oid = CAST($2 AS regclass) AND pg_get_userbyid(relowner) = $1)`, role, db.SQL(`{outbox}`)).Scan(&exists, &owns)
		if err != nil {
			return fmt.Errorf("look up role %q: %w", role, err)
		}
		if !exists {
			return fmt.Errorf("role %q does not exist: create it with CREATE ROLE first", role)
		}
		grants := []string{
			`GRANT USAGE ON SCHEMA ` + quote(db.Schema) + ` TO ` + quote(role),
			`GRANT INSERT (` + strings.Join(published, `, `) + `), SELECT (event_id) ON ` + db.SQL(`{outbox}`) + ` TO ` + quote(role),
		}
		if !owns { // whose rights are the table's own
			// It takes such rights on single columns, too, so it comes first.
			grants = append([]string{`REVOKE INSERT ON ` + db.SQL(`{outbox}`) + ` FROM ` + quote(role)}, grants...)
		}
		for _, grant := range grants {
			if _, err := tx.ExecContext(ctx, grant); err != nil {
				return fmt.Errorf("grant publishing to role %q: %w", role, err)
			}
		}
		// A role with some rights, but not those of granting and revoking these, gets
		// a warning only.
		var granted, all bool
		if err := tx.QueryRowxContext(ctx, `SELECT has_schema_privilege($1, $2, 'USAGE') AND has_column_privilege($1, $3, 'event_id', 'SELECT')
				AND (SELECT bool_and(has_column_privilege($1, $3, name, 'INSERT')) FROM unnest($4::text[]) AS name),
			EXISTS (SELECT 1 FROM pg_class c CROSS JOIN aclexplode(c.relacl) a WHERE c.oid = CAST($3 AS regclass)
				AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner AND pg_get_userbyid(a.grantee) = $1)`,
			role, db.Schema, db.SQL(`{outbox}`), published).Scan(&granted, &all); err != nil {
			return fmt.Errorf("look up what role %q may do: %w", role, err)
		}
		if !granted || all {
			return fmt.Errorf("grant publishing to role %q: connect as the owner of schema %s and its tables, who may grant this; "+
				"INSERT on all of the outbox must be revoked by the role that granted it", role, db.Schema)
		}
		return nil
	})
}

// quote makes any text one PostgreSQL identifier.
func quote(identifier string) string {
	return `"` + strings.ReplaceAll(identifier, `"`, `""`) + `"`
}
