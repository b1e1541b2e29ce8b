package database_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

func TestQueriesAreWrittenOnceForBothDialects(t *testing.T) {
	t.Parallel()
	postgres := &database.DB{Dialect: database.PostgreSQL, Schema: "order"}
	sqlite := &database.DB{Dialect: database.SQLite}
	for _, test := range []struct{ query, postgres, sqlite string }{
		{`SELECT 1`, `SELECT 1`, `SELECT 1`},
		{
			`SELECT * FROM {outbox} o JOIN {media_objects} USING (lane_id) WHERE a = ? AND b = ?`,
			`SELECT * FROM "order".outbox o JOIN "order".media_objects USING (lane_id) WHERE a = $1 AND b = $2`,
			`SELECT * FROM outbox o JOIN media_objects USING (lane_id) WHERE a = ? AND b = ?`,
		},
		{`{for_update}{for_key_share}`, `FOR UPDATEFOR KEY SHARE`, ``},
		{`LIMIT ? {skip_locked}`, `LIMIT $1 FOR UPDATE SKIP LOCKED`, `LIMIT ? `},
		{`'{}' {Upper} {a-b}`, `'{}' {Upper} {a-b}`, `'{}' {Upper} {a-b}`},
	} {
		for range 2 { // as written, then from the cache
			if diff := cmp.Diff(test.postgres, postgres.SQL(test.query)); diff != "" {
				t.Errorf("PostgreSQL, %q (-want +got):\n%s", test.query, diff)
			}
			if diff := cmp.Diff(test.sqlite, sqlite.SQL(test.query)); diff != "" {
				t.Errorf("SQLite, %q (-want +got):\n%s", test.query, diff)
			}
		}
	}
}

func TestNowIsTheDatabasesClockInMicroseconds(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var micros, driftSeconds int64
		query := `SELECT {now} AS micros, abs({now} / 1000000 - ?) AS drift`
		if err := db.QueryRowxContext(t.Context(), db.SQL(query), testUnixNow()).Scan(&micros, &driftSeconds); err != nil {
			t.Fatal(err)
		}
		if driftSeconds > 60 || micros < 1e15 {
			t.Errorf("now is %d, %d s from ours", micros, driftSeconds)
		}
	})
}

func TestJSONOfAnyKindIsAParameter(t *testing.T) {
	t.Parallel()
	publish := func(t *testing.T, db *database.DB) {
		insert := db.SQL(`INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)`)
		for range 3 {
			_, err := db.ExecContext(t.Context(), insert, uuid.NewString(), "MediaDeleted", "s", "", `{"a":"\u0000"}`)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	dbtest.Each(t, publish)
	t.Run("behind PgBouncer", func(t *testing.T) {
		t.Parallel()
		db := dbtest.Open(t, pgtest.PgBouncer(t, pgtest.URL(t)))
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		publish(t, db)
	})
}

// PgBouncer in transaction mode would lose what was prepared: only where the
// connections are the server's own may anything be.
func TestNothingIsPreparedBehindAPooler(t *testing.T) {
	t.Parallel()
	direct := pgtest.URL(t)
	for name, url := range map[string]string{
		"the server's own connections": direct,
		"PgBouncer":                    pgtest.PgBouncer(t, direct),
		"as the URL says":              direct + "&default_query_exec_mode=exec",
	} {
		db := dbtest.Open(t, url)
		for range 3 {
			var echo string
			if err := db.GetContext(t.Context(), &echo, db.SQL(`SELECT CAST(? AS text)`), "a"); err != nil {
				t.Fatal(err)
			}
		}
		var prepared int
		if err := db.GetContext(t.Context(), &prepared, `SELECT count(*) FROM pg_prepared_statements`); err != nil {
			t.Fatal(err)
		}
		if (prepared > 0) != (url == direct) {
			t.Errorf("%s: %d statements are prepared in the session", name, prepared)
		}
	}
}

func TestOpenSaysWhatIsWrongWithAURLWithoutItsPassword(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "no", "x.db")
	for _, test := range []struct{ name, url, schema, want string }{
		{"empty", "", "ownbucket", "no database URL"},
		{"other database", "mysql://u:hunter2@h/d", "ownbucket", `unknown database URL scheme "mysql"`},
		{"no scheme", "u:hunter2@h/d", "ownbucket", "unknown database URL scheme"},
		{"key words", "host=h password=hunter2 port=1:2", "ownbucket", "no scheme"},
		{"broken URL", "postgres://u:hunter2@h:port/d", "ownbucket", "can't be read"},
		{"unescaped password", "postgres://u:x/hunter2?@h/d", "ownbucket", "can't be read"},
		{"nobody there", "postgres://u:hunter2@127.0.0.1:1/d", "ownbucket", "connect to PostgreSQL"},
		{"schema injection", "postgres://u:hunter2@h/d", `x"; DROP`, "not valid"},
		{"upper case schema", "postgres://u:hunter2@h/d", "Own", "not valid"},
		{"long schema", "postgres://u:hunter2@h/d", strings.Repeat("a", 64), "not valid"},
		{"PostgreSQL's schema", "postgres://u:hunter2@h/d", "pg_catalog", "PostgreSQL's own"},
		{"no schema", "postgres://u:hunter2@h/d", "", "not valid"},
		{"no file", "sqlite:", "", "a file name is needed"},
		{"memory", "sqlite::memory:", "", "a file name is needed"},
		{"no directory", "sqlite:" + missing, "", "create its directory first"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, err := database.Open(t.Context(), test.url, test.schema)
			if err == nil {
				_ = db.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %q, want it to say %q", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error holds the password: %q", err)
			}
		})
	}
}

func TestSQLiteOpensFilesOfAnyName(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	for _, name := range []string{"a b", "what?", "#1", "100%", "100%41", "a&b=c;d", "日本語", "'\"", "file:x"} {
		path := filepath.Join(directory, name)
		db := dbtest.Open(t, "sqlite:"+path)
		if _, err := db.ExecContext(t.Context(), `CREATE TABLE t (x)`); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatalf("%q stands elsewhere: %v", name, err)
		}
		if info.Size() == 0 || info.Mode().Perm() != 0o600 {
			t.Errorf("%q has %d bytes, mode %v", name, info.Size(), info.Mode())
		}
	}
}

func TestSQLiteSyncsEveryCommit(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000",
	} {
		var got string
		if err := db.GetContext(t.Context(), &got, `PRAGMA `+pragma); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
}

func TestOneWorkerPerSQLiteDatabaseWhateverItsFileIsCalled(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	alias := filepath.Join(t.TempDir(), "alias.db")
	if err := os.Symlink(db.Path, alias); err != nil {
		t.Fatal(err)
	}
	other := dbtest.Open(t, "sqlite:"+alias)

	release, err := database.LockWorker(db.Path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := database.LockWorker(other.Path); !errors.Is(err, database.ErrWorkerRuns) {
		t.Fatalf("a second worker got %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = database.LockWorker(other.Path)
	if err != nil {
		t.Fatalf("the lock outlived its holder: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

func TestTransientErrorsAreToldFromOthers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		_, err := db.ExecContext(t.Context(), `SELECT * FROM no_such_table`)
		if err == nil || database.IsTransient(err) {
			t.Errorf("a wrong query is transient: %v", err)
		}
	})
	if database.IsTransient(nil) || database.IsTransient(context.Canceled) {
		t.Error("no error, or our own cancellation, is transient")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = database.Open(t.Context(), "postgres://u@"+address+"/d?sslmode=disable", "ownbucket")
	if !database.IsTransient(err) {
		t.Errorf("an unreachable server is not transient: %v", err)
	}
}

func TestAConnectionKilledByTheServerIsTransient(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(t.Context(), `SELECT pg_terminate_backend(pg_backend_pid())`)
		return err
	})
	if !database.IsTransient(err) {
		t.Errorf("not transient: %v", err)
	}
	if err := db.PingContext(t.Context()); err != nil {
		t.Errorf("the pool doesn't recover: %v", err)
	}
}

func TestAStatementThatWasCutOffIsTransient(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(t.Context(), `SET LOCAL statement_timeout = 1; SELECT pg_sleep(600)`)
		return err
	})
	if !database.IsTransient(err) {
		t.Errorf("not transient: %v", err)
	}
}

func TestOpenTakesBothPostgreSQLSchemes(t *testing.T) {
	t.Parallel()
	url := strings.Replace(pgtest.URL(t), "postgres://", "postgresql://", 1)
	if db := dbtest.Open(t, url); db.Dialect != database.PostgreSQL || db.Schema != "ownbucket" {
		t.Errorf("opened %s, schema %q", db.Dialect, db.Schema)
	}
}
