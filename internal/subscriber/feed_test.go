package subscriber_test

import (
	"context"
	"slices"
	"testing"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// A worker may die after it gave a lane back, and before its next look. Others saw
// the event while it held the lane, and left it to it.
func TestALaneThatNobodyWantsIsFoundByAWorkerThatBegins(t *testing.T) {
	each(t, func(w *world) {
		first := w.Publish("s", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("dead")
		w.Settle(lane, first, outboxtest.Done)
		if err := w.Store.Release(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}); err != nil {
			w.T.Fatal(err)
		}
		event := w.Publish("s", outboxtest.Touch("a"))[0]
		if lanes := w.Claim("other"); len(lanes) > 0 {
			w.T.Fatalf("claimed %v, which nobody wants", lanes)
		}
		start(w.T, w.Another(), configured("w"), func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done })
		w.Await("it completes", func() bool { return w.State(event) == "completed done" })
	})
}

// So is an event whose lane nobody wants while workers run: all lanes are looked
// through now and then.
func TestAWorkerThatRunsFindsWhatNoLookSees(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		worker := start(w.T, w.Store, configured("w"), h.handle)
		w.runs(h, w.Publish("s", outboxtest.Touch("a"))[0], outboxtest.Done)
		w.Await("the lane is given back", func() bool {
			return outboxtest.One[bool](w.World, `SELECT NOT EXISTS (SELECT 1 FROM {lanes} WHERE leased_by IS NOT NULL)`)
		})
		unseen := w.PublishEnded("s", outboxtest.Touch("b"))
		w.Await("the worker takes it for ended", func() bool { return worker.Knows(unseen) })
		w.Exec(`UPDATE {outbox} SET state = 'available', finished_at = NULL WHERE sequence = ?`, unseen)
		w.runs(h, unseen, outboxtest.Done)
	})
}

// However much was published before, is held or has ended, and however many
// transactions are open: a look reads what became visible since the last one.
func TestALookReadsWhatIsNewOnly(t *testing.T) {
	t.Parallel()
	const many, few = 3000, 60
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.DB.SetMaxOpenConns(2) // whose statistics are the test's, and a transaction
	fill := func(state string) {
		w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, state, parked, finished_at)
			SELECT gen_random_uuid(), 'MediaDeleted', 'bulk-' || i, '{}', CAST(? AS text), CAST(? AS text) = 'retryable',
				CASE WHEN CAST(? AS text) = 'completed' THEN {now} END
			FROM generate_series(1, CAST(? AS integer)) AS i`, state, state, state, many)
	}
	feed, err := subscriber.Begin(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	look := func(want ...int64) {
		t.Helper()
		if got, err := feed.Look(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Fatalf("saw %v (%v), want %v", got, err, want)
		}
	}
	for range 6 { // PostgreSQL prepares a plan for good at the sixth
		look(w.Publish("s", outboxtest.Touch("a"))...)
	}
	for _, state := range []string{"available", "retryable", "completed", "dead"} {
		fill(state)
	}
	w.Exec(`INSERT INTO {lanes} (service_id, environment_id) SELECT 'bulk-' || i, '' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
	for bulk := 0; bulk < 4*many; {
		got, err := feed.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bulk += len(got)
	}
	tx := w.Begin()
	late := w.Insert(tx, "s", "", outboxtest.Touch("a"))
	for range 12 { // with a gap, too
		look(w.Publish("s", outboxtest.Touch("a"))...)
	}
	w.DB.SetMaxOpenConns(2)
	next := w.Publish("s", outboxtest.Touch("a"))
	before := dbtest.ReadRows(t, w.DB)
	look(next...)
	if read := dbtest.ReadRows(t, w.DB) - before; read > few {
		t.Errorf("%d rows were read", read)
	}
	w.Commit(tx)
	before = dbtest.ReadRows(t, w.DB)
	look(late)
	if read := dbtest.ReadRows(t, w.DB) - before; read > few {
		t.Errorf("%d rows were read for a late one", read)
	}
}
