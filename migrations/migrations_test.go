package migrations_test

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

func eachEmpty(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, "sqlite:"+filepath.Join(t.TempDir(), "empty.db"))
	})
	t.Run("postgresql", func(t *testing.T) {
		t.Parallel()
		test(t, pgtest.URL(t))
	})
}

func TestUpBringsAnEmptyDatabaseUpToDateOnce(t *testing.T) {
	t.Parallel()
	eachEmpty(t, func(t *testing.T, url string) {
		db := dbtest.Open(t, url)
		if err := migrations.Check(t.Context(), db); !errors.Is(err, migrations.ErrOutdated) {
			t.Fatalf("an empty database is checked as %v", err)
		}
		before, err := migrations.Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		applied, err := migrations.Up(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if len(applied) == 0 || len(applied) != len(before) {
			t.Errorf("%d of %d migrations were applied", len(applied), len(before))
		}
		after, err := migrations.Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		for i := range before {
			before[i].Applied = true
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("status after Up (-want +got):\n%s", diff)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Error(err)
		}
		if again, err := migrations.Up(t.Context(), db); err != nil || len(again) != 0 {
			t.Errorf("a second Up applied %v, %v", again, err)
		}
	})
}

func TestCheckChangesNothing(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, pgtest.URL(t))
	_ = migrations.Check(t.Context(), db)
	if _, err := migrations.Status(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var objects int
	err := db.GetContext(t.Context(), &objects, `SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`)
	if err != nil || objects != 0 {
		t.Errorf("%d tables were made, %v", objects, err)
	}
}

func TestManyProcessesMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	eachEmpty(t, func(t *testing.T, url string) {
		var applied, known int
		var mu sync.Mutex
		var done sync.WaitGroup
		for range 4 {
			db := dbtest.Open(t, url)
			done.Go(func() {
				steps, err := migrations.Up(t.Context(), db)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				applied += len(steps)
			})
		}
		done.Wait()
		status, err := migrations.Status(t.Context(), dbtest.Open(t, url))
		if err != nil {
			t.Fatal(err)
		}
		known = len(status)
		if applied != known {
			t.Errorf("%d migrations were applied, there are %d", applied, known)
		}
	})
}

func TestTablesOfANewerProgramAreRefused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		_, err := db.ExecContext(t.Context(),
			db.SQL(`INSERT INTO {schema_migrations} (version_id, is_applied) VALUES (?, ?)`), 99999, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); !errors.Is(err, migrations.ErrTooNew) {
			t.Errorf("Check says %v", err)
		}
		if _, err := migrations.Up(t.Context(), db); !errors.Is(err, migrations.ErrTooNew) {
			t.Errorf("Up says %v", err)
		}
	})
}

// TestTheSchemaMayHaveAnyValidName covers reserved words, and two of ours in
// one database.
func TestTheSchemaMayHaveAnyValidName(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	for _, schema := range []string{"order", "select", "_1"} {
		db, err := database.Open(t.Context(), url, schema)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatalf("schema %s: %v", schema, err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatalf("schema %s, again: %v", schema, err)
		}
		if _, err := db.ExecContext(t.Context(), db.SQL(insertEvent), uuid.NewString()); err != nil {
			t.Fatalf("schema %s: %v", schema, err)
		}
	}
}

const insertEvent = `INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
	VALUES (?, 'MediaDeleted', 's', '', '{}') ON CONFLICT (event_id) DO NOTHING`
