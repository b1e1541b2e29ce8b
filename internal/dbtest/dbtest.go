// Package dbtest runs a test on every database that we promise to work on,
// so that "works on PostgreSQL" and "works on SQLite" mean the same.
package dbtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

// Each runs the test on a fresh, migrated database of each kind, in
// parallel subtests named after the dialect.
func Each(t *testing.T, test func(t *testing.T, db *database.DB)) {
	t.Helper()
	EachURL(t, func(t *testing.T, url string) { test(t, Open(t, url)) })
}

// EachURL is Each for tests that open the database themselves, or let
// another process open it, in the default schema.
func EachURL(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run(string(database.SQLite), func(t *testing.T) {
		t.Parallel()
		test(t, SQLiteURL(t))
	})
	t.Run(string(database.PostgreSQL), func(t *testing.T) {
		t.Parallel()
		test(t, PostgreSQLURL(t))
	})
}

// SQLite opens a fresh, migrated SQLite database.
func SQLite(t testing.TB) *database.DB {
	t.Helper()
	return Open(t, SQLiteURL(t))
}

// PostgreSQL opens a fresh, migrated PostgreSQL database.
func PostgreSQL(t testing.TB) *database.DB {
	t.Helper()
	return Open(t, PostgreSQLURL(t))
}

// Open opens a further handle on a test's database, closed after the test.
func Open(t testing.TB, url string) *database.DB {
	t.Helper()
	db, err := database.Open(t.Context(), url, database.DefaultSchema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	return db
}

// SQLiteURL is the URL of a fresh, migrated SQLite database.
func SQLiteURL(t testing.TB) string {
	t.Helper()
	image, err := migratedSQLite()
	if err != nil {
		t.Fatalf("migrate SQLite: %v", err)
	}
	path := filepath.Join(t.TempDir(), "ownbucket.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return "sqlite:" + path
}

// PostgreSQLURL is the URL of a fresh, migrated PostgreSQL database.
func PostgreSQLURL(t testing.TB) string {
	t.Helper()
	return pgtest.Clone(t, "migrated", migrate)
}

// migratedSQLite is the file that every test gets a copy of.
var migratedSQLite = sync.OnceValues(func() ([]byte, error) {
	directory, err := os.MkdirTemp("", "dbtest")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(directory) }()
	path := filepath.Join(directory, "migrated.db")
	if err := migrate("sqlite:" + path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// ReadRows counts what was read of all tables so far, by index or not. It is for
// PostgreSQL, where db has but one connection, whose statistics are then known.
func ReadRows(t testing.TB, db *database.DB) (n int64) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), `SELECT pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	if err := db.GetContext(t.Context(), &n, `SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_read, 0))
		FROM pg_stat_user_tables t JOIN (SELECT relid, sum(idx_tup_read) AS idx_tup_read
			FROM pg_stat_user_indexes GROUP BY relid) i USING (relid)`); err != nil {
		t.Fatal(err)
	}
	return n
}

func migrate(url string) (err error) {
	ctx := context.Background()
	db, err := database.Open(ctx, url, database.DefaultSchema)
	if err != nil {
		return err
	}
	// Closing also moves SQLite's log into the one file that is copied.
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = migrations.Up(ctx, db)
	return err
}
