package outbox_test

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// listed reads all events in every way in which operators do.
func (w *world) listed() (list []outbox.Listed, stats outbox.Stats) {
	w.T.Helper()
	list, err := w.Store.List(w.T.Context(), outbox.Filter{}, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	if stats, err = w.Store.Stats(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
	if _, err := json.Marshal(list); err != nil {
		w.T.Error(err)
	}
	for _, e := range list {
		shown, err := w.Store.Show(w.T.Context(), e.EventID)
		if err != nil {
			w.T.Error(err)
		}
		if _, err := json.Marshal(shown); err != nil {
			w.T.Error(err)
		}
	}
	return list, stats
}

func TestTimesBeyondTheYears0To9999AreShownAsTheNearest(t *testing.T) {
	each(t, func(w *world) {
		for created, want := range map[int64]string{
			math.MinInt64:           "0000-01-01T00:00:00Z",
			-62_200_000_000_000_000: "0000-01-01T00:00:00Z",
			253_402_300_800_000_000: "9999-12-31T23:59:59.999999Z",
			math.MaxInt64:           "9999-12-31T23:59:59.999999Z",
		} {
			w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, created_at) VALUES (?, 'x', 's', '{}', ?)`,
				uuid.NewString(), created)
			list, stats := w.listed()
			if got := list[len(list)-1].CreatedAt.Format(time.RFC3339Nano); got != want {
				w.T.Errorf("%d is shown as %s, want %s", created, got, want)
			}
			if stats.Events[outbox.Available] != int64(len(list)) || stats.OldestAvailableSeconds < 0 {
				w.T.Errorf("stats are %+v", stats)
			}
		}
	})
}

func TestEventsFromTheFutureDontKeepOthersFromBeingPruned(t *testing.T) {
	each(t, func(w *world) {
		const batch = 2000
		w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, created_at)
			SELECT `+w.UUIDOf("n")+`, 'x', 's', '{}', ? FROM (`+w.Series(batch)+`) AS s`, int64(math.MaxInt64))
		w.Publish("s", outboxtest.Touch("a"))
		w.Exec(`UPDATE {outbox} SET state = 'completed', finished_at = 1`)
		w.Exec(`UPDATE {outbox} SET created_at = 1 WHERE sequence > ?`, batch)
		var deleted int64
		for after := int64(0); ; {
			next, n, err := w.Store.Prune(w.T.Context(), time.Hour, after)
			if err != nil {
				w.T.Fatal(err)
			}
			deleted += n
			if after = next; next == 0 {
				break
			}
		}
		if deleted != batch+1 {
			w.T.Errorf("%d of %d were pruned", deleted, batch+1)
		}
	})
}

// oddities are what SQLite takes in a column of any type.
var oddities = []any{"2026-01-02 03:04:05", "", "NULL", "9e99", "\x00\xff", []byte("blob"), []byte{0, 0xff}, 1.5, -1e300,
	int64(math.MaxInt64), int64(math.MinInt64)}

// A row as no publisher could write it, or that the file's owner changed.
func TestNoValueInAColumnOfSQLitesKeepsOthersFromBeingRead(t *testing.T) {
	each(t, func(w *world) {
		if w.DB.Dialect != database.SQLite {
			w.T.Skip("PostgreSQL's columns have types")
		}
		healthy := w.Publish("s", outboxtest.Touch("a"))[0]
		columns := outboxtest.All[string](w.World, `SELECT name FROM pragma_table_info('outbox') WHERE name NOT IN ('sequence', 'event_id')`)
		for _, column := range columns {
			for _, odd := range oddities {
				w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data) VALUES (?, 'EnvironmentCreated', 's', '{}')`, uuid.NewString())
				// What the table refuses isn't there.
				_, _ = w.DB.ExecContext(w.T.Context(), `UPDATE outbox SET "`+column+`" = ? WHERE sequence = (SELECT max(sequence) FROM outbox)`, odd)
			}
		}
		w.listed()
		w.Want()
		var read []int64
		for _, lane := range w.Claim("w") {
			read = append(read, outboxtest.Sequences(w.Read(lane.LaneID))...)
			w.unfinished(lane.LaneID, "b", math.MaxInt64)
		}
		if !slices.Contains(read, healthy) {
			w.T.Errorf("read %v, without %d", read, healthy)
		}
		if _, _, err := w.Store.Promote(w.T.Context()); err != nil {
			w.T.Error(err)
		}
		if _, err := w.Store.Idle(w.T.Context()); err != nil {
			w.T.Error(err)
		}
		if _, _, err := w.Store.Prune(w.T.Context(), time.Hour, 0); err != nil {
			w.T.Error(err)
		}
		if _, err := w.Store.Discard(w.T.Context(), outbox.Filter{ServiceID: "s"}, outbox.Action{Actor: "a", Reason: "r"}); err != nil {
			w.T.Error(err)
		}
	})
}
