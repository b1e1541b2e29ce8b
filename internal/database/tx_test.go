package database_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func testUnixNow() int64 { return time.Now().Unix() }

// counters makes a table of two rows, both 0.
func counters(t *testing.T, db *database.DB) {
	t.Helper()
	for _, statement := range []string{
		`CREATE TABLE {counters} (id integer PRIMARY KEY, n integer NOT NULL)`,
		`INSERT INTO {counters} VALUES (1, 0), (2, 0)`,
	} {
		if _, err := db.ExecContext(t.Context(), db.SQL(statement)); err != nil {
			t.Fatal(err)
		}
	}
}

func sum(t *testing.T, db *database.DB) (n int) {
	t.Helper()
	if err := db.GetContext(t.Context(), &n, db.SQL(`SELECT sum(n) FROM {counters}`)); err != nil {
		t.Fatal(err)
	}
	return n
}

func increment(ctx context.Context, db *database.DB, tx *sqlx.Tx, id int) error {
	_, err := tx.ExecContext(ctx, db.SQL(`UPDATE {counters} SET n = n + 1 WHERE id = ?`), id)
	return err
}

func TestTxCommitsAllOrNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		counters(t, db)
		refused := errors.New("refused")
		err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
			return errors.Join(increment(t.Context(), db, tx, 1), refused)
		})
		if !errors.Is(err, refused) || sum(t, db) != 0 {
			t.Errorf("after an error: %v, sum %d", err, sum(t, db))
		}

		func() {
			defer func() { _ = recover() }()
			_ = db.Tx(t.Context(), func(tx *sqlx.Tx) error {
				if err := increment(t.Context(), db, tx, 1); err != nil {
					t.Error(err)
				}
				panic("bug")
			})
		}()
		if sum(t, db) != 0 {
			t.Errorf("after a panic: sum %d", sum(t, db))
		}

		err = db.Tx(t.Context(), func(tx *sqlx.Tx) error { return increment(t.Context(), db, tx, 1) })
		if err != nil || sum(t, db) != 1 {
			t.Errorf("after success: %v, sum %d", err, sum(t, db))
		}
	})
}

func TestTxRunsAgainWhenItLostToADeadlock(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	counters(t, db)

	// Each takes its first row before either asks for its second.
	var bothHoldOne, done sync.WaitGroup
	bothHoldOne.Add(2)
	for _, order := range [][2]int{{1, 2}, {2, 1}} {
		done.Go(func() {
			var once sync.Once
			err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
				if err := increment(t.Context(), db, tx, order[0]); err != nil {
					return err
				}
				once.Do(func() { bothHoldOne.Done(); bothHoldOne.Wait() })
				return increment(t.Context(), db, tx, order[1])
			})
			if err != nil {
				t.Errorf("order %v: %v", order, err)
			}
		})
	}
	done.Wait()
	if got := sum(t, db); got != 4 {
		t.Errorf("the sum is %d, want 4: an increment was lost or doubled", got)
	}
}

// A process that was stopped for a while finds its transactions ended by the server.
func TestTxRunsAgainWhenItLostItsConnectionBeforeItsCommit(t *testing.T) {
	t.Parallel()
	for name, committing := range map[string]bool{"before its commit": false, "at its commit": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.PostgreSQL(t)
			counters(t, db)
			runs := 0
			err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
				runs++
				if err := increment(t.Context(), db, tx, 1); err != nil {
					return err
				}
				if runs > 1 {
					return nil
				}
				var pid int
				if err := tx.GetContext(t.Context(), &pid, `SELECT pg_backend_pid()`); err != nil {
					return err
				}
				if _, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
					return err
				}
				if committing {
					return nil
				}
				return increment(t.Context(), db, tx, 2)
			})
			if committing {
				if !database.IsTransient(err) || runs != 1 {
					t.Errorf("run %d times, and then %v", runs, err)
				}
				return
			}
			if err != nil || runs != 2 || sum(t, db) != 1 {
				t.Errorf("run %d times, and then %v: the sum is %d", runs, err, sum(t, db))
			}
		})
	}
}

func TestTxTakesSQLitesWriteLockWhenItBegins(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLiteURL(t)
	one, two := dbtest.Open(t, url), dbtest.Open(t, url)
	counters(t, one)

	// Both read first. With a deferred transaction one would then fail with
	// SQLITE_BUSY at its write, at once and for good.
	var done sync.WaitGroup
	for _, db := range []*database.DB{one, two} {
		done.Go(func() {
			for range 20 {
				err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
					var n int
					if err := tx.GetContext(t.Context(), &n, one.SQL(`SELECT n FROM {counters} WHERE id = 1`)); err != nil {
						return err
					}
					return increment(t.Context(), db, tx, 1)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
	if got := sum(t, one); got != 40 {
		t.Errorf("the sum is %d, want 40", got)
	}
}

func TestLockIsHeldByOneAtATimeAndWaitingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		one, two := dbtest.Open(t, url), dbtest.Open(t, url)
		release, err := one.Lock(t.Context(), "purpose")
		if err != nil {
			t.Fatal(err)
		}
		other, err := two.Lock(t.Context(), "other")
		if err != nil {
			t.Fatalf("another purpose shares the lock: %v", err)
		}
		if err := other(); err != nil {
			t.Error(err)
		}

		impatient, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		if _, err := two.Lock(impatient, "purpose"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second holder got %v", err)
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
		release, err = two.Lock(t.Context(), "purpose")
		if err != nil {
			t.Fatalf("the lock was not given back: %v", err)
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	})
}

func TestAWaitForALockIsToldOf(t *testing.T) {
	defer database.SetLockPatience(time.Millisecond)()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		one, two := dbtest.Open(t, url), dbtest.Open(t, url)
		release, err := one.Lock(t.Context(), "purpose")
		if err != nil {
			t.Fatal(err)
		}
		told := make(chan string, 2)
		two.Waiting = func(purpose string) {
			told <- purpose
			if err := release(); err != nil {
				t.Error(err)
			}
		}
		second, err := two.Lock(t.Context(), "purpose")
		if err != nil {
			t.Fatal(err)
		}
		if err := second(); err != nil {
			t.Error(err)
		}
		if purpose := <-told; purpose != "purpose" || len(told) > 0 {
			t.Errorf("told of %q, and of %d more", purpose, len(told))
		}
	})
}

func TestAStatementIsNotKeptWaitingBeyondTheLockTimeout(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgreSQLURL(t)
	holder := dbtest.Open(t, url)
	db, err := database.Open(t.Context(), url, database.DefaultSchema, database.LockTimeout(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := holder.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), holder.SQL(`LOCK TABLE {lanes} IN EXCLUSIVE MODE`)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), db.SQL(`UPDATE {lanes} SET held = false`)); !database.IsTransient(err) || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("it failed with %v, want a lock timeout that may be over later", err)
	}
}
