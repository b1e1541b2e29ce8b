package migrations_test

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/migrations"
)

func publish(t *testing.T, db *database.DB) (sequence int64) {
	t.Helper()
	if err := db.GetContext(t.Context(), &sequence, db.SQL(insertEvent)+` RETURNING sequence`, uuid.NewString()); err != nil {
		t.Fatal(err)
	}
	return sequence
}

func TestOnSQLiteAPublisherDoesNotChooseTheSequence(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	last := publish(t, db)
	for _, sequence := range []int64{math.MaxInt64, math.MaxInt64 - 1, 1 << 62, 1 << 33, 0, -1, math.MinInt64} {
		if _, err := db.ExecContext(t.Context(), `INSERT INTO outbox (sequence, event_id, type, service_id, data)
			VALUES (?, ?, 'x', 's', '{}')`, sequence, uuid.NewString()); err == nil {
			t.Errorf("sequence %d was taken", sequence)
		}
		next := publish(t, db)
		if next != last+1 {
			t.Errorf("after %d, sequence %d was given", last, next)
		}
		last = next
	}
	// Once all of these are pruned, their sequences aren't free.
	execute(t, db, `DELETE FROM outbox`)
	if _, err := db.ExecContext(t.Context(), `INSERT INTO outbox (sequence, event_id, type, service_id, data)
		VALUES (1, ?, 'x', 's', '{}')`, uuid.NewString()); err == nil {
		t.Error("a sequence was taken that had been given before")
	}
	// One statement may have many events, and some of them again.
	again := uuid.NewString()
	if _, err := db.ExecContext(t.Context(), `INSERT INTO outbox (event_id, type, service_id, data) VALUES (?, 'x', 's', '{}'),
		(?, 'x', 's', '{}'), (?, 'x', 's', '{}'), (?, 'x', 's', '{}') ON CONFLICT (event_id) DO NOTHING`,
		again, again, again, uuid.NewString()); err != nil {
		t.Error(err)
	}
}

// published is what a publisher wrote, as a worker finds it.
type published struct {
	EventID  string  `db:"event_id"`
	Type     string  `db:"type"`
	Service  string  `db:"service_id"`
	Data     string  `db:"data"`
	Created  int64   `db:"created_at"`
	Types    string  `db:"types"`
	State    string  `db:"state"`
	Lane     *int64  `db:"lane_id"`
	Parked   bool    `db:"parked"`
	Attempts int     `db:"attempt_count"`
	Worker   *string `db:"worker"`
}

const readPublished = `SELECT event_id, type, service_id, data, created_at, state, lane_id, parked, attempt_count, worker,
	typeof(event_id) || typeof(type) || typeof(service_id) || typeof(data) || typeof(created_at) AS types FROM outbox`

var wantPublished = published{EventID: "0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10", Type: "MediaDeleted", Service: "S1", Data: "{}",
	Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro(), Types: "texttexttexttextinteger", State: "available"}

// odd is a row as an ORM may write it: texts as bytes, the time as a text.
const odd = `INSERT INTO outbox (event_id, type, service_id, data, created_at, state, lane_id, parked, attempt_count, worker)
	VALUES ('0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10', CAST('MediaDeleted' AS BLOB), CAST('S1' AS BLOB), CAST('{}' AS BLOB),
		'2026-01-02 03:04:05', `

func TestOnSQLiteARowIsPutRight(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	execute(t, db, odd+`'completed', 7, 'x', 'y', 'z')`)
	var got []published
	if err := db.SelectContext(t.Context(), &got, readPublished); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]published{wantPublished}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	execute(t, db, `DELETE FROM outbox`, odd+`'available', NULL, 0, 0, NULL)`,
		`INSERT INTO outbox (event_id, type, service_id, data, created_at) VALUES ('`+uuid.NewString()+`', 'x', 's', '{}', 'yesterday')`)
	if err := db.SelectContext(t.Context(), &got, readPublished+` ORDER BY sequence`); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantPublished, got[0]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if age := time.Since(time.UnixMicro(got[1].Created)); age < -time.Second || age > time.Minute {
		t.Errorf("the event was created %v ago", age)
	}
}

func TestOnSQLiteRowsOfAnOlderProgramArePutRight(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, "sqlite:"+filepath.Join(t.TempDir(), "empty.db"))
	if err := migrations.UpTo(t.Context(), db, 8); err != nil {
		t.Fatal(err)
	}
	execute(t, db, odd+`'available', NULL, 0, 0, NULL)`)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var got published
	if err := db.GetContext(t.Context(), &got, readPublished); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantPublished, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func BenchmarkPublishingOnSQLite(b *testing.B) {
	for name, version := range map[string]int64{"with triggers": 9, "without": 8} {
		b.Run(name, func(b *testing.B) {
			db := dbtest.Open(b, "sqlite:"+filepath.Join(b.TempDir(), "empty.db"))
			if err := migrations.UpTo(b.Context(), db, version); err != nil {
				b.Fatal(err)
			}
			// One transaction: the disk's sync would hide the rest.
			tx, err := db.BeginTxx(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			defer tx.Rollback()
			for b.Loop() {
				if _, err := tx.ExecContext(b.Context(), db.SQL(insertEvent), uuid.NewString()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
