package subscriber_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// Two of the CMS's transactions publish for the same customer, even the same
// media: neither may wait for the other, whichever commits first.
func TestPublishersNeverWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.Publish("s", outboxtest.Touch("a"))
	w.Want() // the lane exists
	feed, err := subscriber.Begin(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	first, err := w.DB.BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Rollback()
	second, err := w.DB.BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Rollback()
	w.Insert(first, "s", "", outboxtest.Touch("a"))
	published := w.Insert(second, "s", "", outboxtest.Touch("a"))
	if waiting := outboxtest.All[int64](w.World, `SELECT pid FROM pg_stat_activity
		WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0`); len(waiting) > 0 {
		t.Errorf("%v wait for a lock", waiting)
	}
	if err := second.Commit(); err != nil {
		t.Errorf("the second could not commit while the first was open: %v", err)
	}
	if seen, err := feed.Look(ctx); err != nil || !slices.Equal(seen, []int64{published}) {
		t.Errorf("saw %v (%v), want %d", seen, err, published)
	}
	if err := first.Commit(); err != nil {
		t.Error(err)
	}
}

// A worker that holds the lane, or settles in it, keeps no publisher waiting.
func TestPublishersNeverWaitForAWorker(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.Publish("s", outboxtest.Touch("a"))
	w.ClaimOne("w")
	working, err := w.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer working.Rollback()
	for _, lock := range []string{`SELECT 1 FROM {lanes} FOR UPDATE`, `UPDATE {outbox} SET state = 'running'`} {
		if _, err := working.ExecContext(t.Context(), w.DB.SQL(lock)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	publishing, err := w.DB.BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer publishing.Rollback()
	w.Insert(publishing, "s", "", outboxtest.Touch("a"))
	if err := publishing.Commit(); err != nil {
		t.Error(err)
	}
}

func TestACommitWakesTheWorkers(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, databaseURL))
	h := newHands()
	// It would look by itself only when the test is long over.
	s := start(t, w.Store, configured("w", func(c *subscriber.Config) { c.Poll = time.Hour }), h.handle)
	heard := make(chan struct{}, 100)
	listening, stop := context.WithCancel(t.Context())
	var listener sync.WaitGroup
	listener.Go(func() {
		subscriber.Listen(listening, databaseURL, w.DB.Schema, func() {
			s.Wake()
			heard <- struct{}{}
		}, slog.New(slog.DiscardHandler))
	})
	defer listener.Wait()
	defer stop()
	<-heard // it listens
	for i := range 3 {
		w.Publish("s", outboxtest.Touch("a"))
		<-heard
		w.Await("it runs", func() bool { return len(h.running()) == 1 })
		h.end(h.running()[0], outboxtest.Done)
		w.Await("it ends", func() bool { return w.finished() == i+1 })
	}
}

func TestPollingAloneFindsEvents(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		for i := range 5 {
			w.Publish("s", outboxtest.Touch("a"))
			w.ends("it ends", h, outboxtest.Done, func() bool { return w.finished() == i+1 })
		}
	})
}

// In transaction mode a session's state is nobody's: no LISTEN, no session
// locks, no prepared statements.
func TestTheOutboxWorksBehindPgBouncer(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, pgtest.PgBouncer(t, databaseURL)))
	for range 10 {
		w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("b", "x", "y"))
	}
	for i := range 2 {
		tries := make(map[int64]bool)
		var mu sync.Mutex
		start(t, w.Another(), configured("w"+string(rune('1'+i))), func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			mu.Lock()
			defer mu.Unlock()
			if !tries[d.Event.Sequence] {
				tries[d.Event.Sequence] = true
				verdict := outboxtest.RetryIn(time.Millisecond)
				return &verdict
			}
			return &outboxtest.Done
		})
	}
	w.Await("all end", func() bool { return w.finished() == 30 })
}
