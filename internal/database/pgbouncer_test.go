package database_test

import (
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

func TestWorksBehindPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	url := pgtest.PgBouncer(t, pgtest.URL(t))
	db := dbtest.Open(t, url)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	counters(t, db)
	var done sync.WaitGroup
	for worker := range 8 {
		done.Go(func() {
			for range 20 {
				err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
					var n int
					query := db.SQL(`SELECT n FROM {counters} WHERE id = ? {for_update}`)
					if err := tx.GetContext(t.Context(), &n, query, 1+worker%2); err != nil {
						return err
					}
					return increment(t.Context(), db, tx, 1+worker%2)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
	if got := sum(t, db); got != 160 {
		t.Errorf("the sum is %d, want 160", got)
	}
}
