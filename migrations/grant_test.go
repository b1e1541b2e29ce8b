package migrations_test

import (
	"context"
	neturl "net/url"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

// newRole makes a role without any rights. Roles are the whole server's.
func newRole(t *testing.T, db *database.DB, name string) string {
	t.Helper()
	role := name + " " + uuid.NewString()
	execute(t, db, `CREATE ROLE `+quoted(role))
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), `DROP OWNED BY `+quoted(role)+` CASCADE; DROP ROLE `+quoted(role)); err != nil {
			t.Error(err)
		}
	})
	return role
}

func quoted(role string) string { return `"` + strings.ReplaceAll(role, `"`, `""`) + `"` }

func execute(t *testing.T, db *database.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), db.SQL(statement)); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// as runs a statement with a role's rights, and takes it back.
func as(t *testing.T, db *database.DB, role, query string, args ...any) error {
	t.Helper()
	tx, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `SET LOCAL ROLE `+quoted(role)); err != nil {
		t.Fatal(err)
	}
	_, err = tx.ExecContext(t.Context(), db.SQL(query), args...)
	return err
}

// wantPublisher expects that a role may publish, and do nothing else.
func wantPublisher(t *testing.T, db *database.DB, role string) {
	t.Helper()
	for _, query := range []string{insertEvent,
		`INSERT INTO {outbox} (event_id, type, service_id, data, metadata) VALUES (?, 'x', 's', '{}', '{"traceparent": "x"}')`} {
		if err := as(t, db, role, query, uuid.NewString()); err != nil {
			t.Errorf("%s: %s: %v", role, query, err)
		}
	}
	forbidden := []string{
		`SELECT data FROM {outbox}`,
		`SELECT service_id FROM {outbox}`,
		`DELETE FROM {outbox}`,
		`UPDATE {outbox} SET state = 'completed'`,
		`SELECT external_id FROM {integrations}`,
		`CREATE TABLE {mine} (x int)`,
		`LOCK TABLE {integrations} IN SHARE UPDATE EXCLUSIVE MODE`,
		`LOCK TABLE {schema_migrations_lock} IN EXCLUSIVE MODE`,
		`LOCK TABLE {outbox} IN SHARE MODE`,
		`SELECT 1 FROM {lanes} FOR UPDATE`,
	}
	for _, column := range []string{`lane_id`, `resources`, `state`, `sequence`, `created_at`, `next_attempt_at`} {
		forbidden = append(forbidden, `INSERT INTO {outbox} (event_id, type, service_id, data, `+column+`)
			VALUES (gen_random_uuid(), 'MediaDeleted', 's', '{}', `+map[bool]string{true: `'x'`, false: `1`}[column == "state" || column == "resources"]+`)`)
	}
	for _, query := range forbidden {
		if err := as(t, db, role, query); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %s: %v, want permission denied", role, query, err)
		}
	}
}

func TestAGrantedPublisherMayPublishAndNothingElse(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	err := migrations.GrantPublisher(t.Context(), db, "nobody")
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Fatalf("a missing role gives %v", err)
	}
	role := newRole(t, db, `cms "core"`)
	for range 2 {
		if err := migrations.GrantPublisher(t.Context(), db, role); err != nil {
			t.Fatal(err)
		}
		wantPublisher(t, db, role)
	}
}

// The grants are those of older releases' grant-publisher.
func TestGrantingAgainTakesTheRightToWriteOtherColumns(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	role := newRole(t, db, "cms")
	execute(t, db, `GRANT USAGE ON SCHEMA ownbucket TO `+quoted(role), `GRANT INSERT, SELECT (event_id) ON {outbox} TO `+quoted(role))
	if err := migrations.GrantPublisher(t.Context(), db, role); err != nil {
		t.Fatal(err)
	}
	wantPublisher(t, db, role)
}

func TestThePublishersOfAnOlderProgramWriteTheContractsColumnsAlone(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, pgtest.URL(t))
	if err := migrations.UpTo(t.Context(), db, 9); err != nil {
		t.Fatal(err)
	}
	cms, grantor, grantee := newRole(t, db, `cms "core"`), newRole(t, db, "grantor"), newRole(t, db, "grantee")
	for _, role := range []string{cms, grantor, grantee} {
		execute(t, db, `GRANT USAGE ON SCHEMA ownbucket TO `+quoted(role), `GRANT SELECT (event_id) ON {outbox} TO `+quoted(role))
	}
	execute(t, db, `GRANT INSERT ON {outbox} TO `+quoted(cms), `GRANT INSERT ON {outbox} TO `+quoted(grantor)+` WITH GRANT OPTION`,
		`SET ROLE `+quoted(grantor)+`; GRANT INSERT ON {outbox} TO `+quoted(grantee)+`; RESET ROLE`)
	for range 2 {
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		for _, role := range []string{cms, grantor, grantee} {
			wantPublisher(t, db, role)
		}
		if err := migrations.DownTo(t.Context(), db, 9); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGrantingWithoutTheRightToIsAnError(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgreSQLURL(t)
	db := dbtest.Open(t, url)
	worker, cms := newRole(t, db, "worker"), newRole(t, db, "cms")
	execute(t, db, `ALTER ROLE `+quoted(worker)+` LOGIN`, `GRANT USAGE ON SCHEMA ownbucket TO `+quoted(worker),
		`GRANT ALL ON ALL TABLES IN SCHEMA ownbucket TO `+quoted(worker))
	asWorker, err := neturl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	asWorker.User = neturl.User(worker)
	err = migrations.GrantPublisher(t.Context(), dbtest.Open(t, asWorker.String()), cms)
	if err == nil || !strings.Contains(err.Error(), "owner") {
		t.Errorf("nothing was granted, and the error is %v", err)
	}
}

func TestGrantingOnSQLiteSaysWhyNot(t *testing.T) {
	t.Parallel()
	err := migrations.GrantPublisher(t.Context(), dbtest.SQLite(t), "cms")
	if err == nil || !strings.Contains(err.Error(), "PostgreSQL only") {
		t.Errorf("error is %v", err)
	}
}
