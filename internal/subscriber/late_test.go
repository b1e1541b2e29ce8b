package subscriber_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// runs waits until the event runs, and lets it end.
func (w *world) runs(h *hands, sequence int64, verdict outbox.Verdict) {
	w.T.Helper()
	w.Await("it runs", func() bool { return slices.Contains(h.running(), sequence) })
	h.end(sequence, verdict)
	w.Await("it ends", func() bool { return w.State(sequence) != "available" && w.State(sequence) != "running" })
}

func TestAnEventThatCommitsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	start(t, w.Store, configured("w"), h.handle)
	w.runs(h, w.Publish("s", outboxtest.Touch("a"))[0], outboxtest.Done) // the worker has begun
	early, rolledBack := w.Begin(), w.Begin()
	first := w.Insert(early, "s", "", outboxtest.Touch("a"))
	w.Insert(rolledBack, "s", "", outboxtest.Touch("a"))
	third := w.Publish("s", outboxtest.Touch("a"))[0]
	w.runs(h, third, outboxtest.Done)
	if err := rolledBack.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.Commit(early)
	fourth := w.Publish("s", outboxtest.Touch("a"))[0]
	w.runs(h, first, outboxtest.Done)
	w.runs(h, fourth, outboxtest.Done)
	if diff := cmp.Diff([]int64{third, first, fourth}, w.Effects()[1:]); diff != "" {
		t.Error(diff)
	}
}

// A transaction that was open when the worker began may publish below all that the
// worker saw then.
func TestAnEventOfATransactionThatWasOpenAtTheBeginningIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	early := w.Begin()
	first := w.Insert(early, "s", "", outboxtest.Touch("a"))
	other := w.Publish("s", outboxtest.Touch("b"))[0]
	h := newHands()
	start(t, w.Store, configured("w"), h.handle)
	w.runs(h, other, outboxtest.Done)
	w.Commit(early)
	second := w.Publish("s", outboxtest.Touch("a"))[0]
	w.runs(h, first, outboxtest.Done)
	w.runs(h, second, outboxtest.Done)
	if diff := cmp.Diff([]int64{other, first, second}, w.Effects()); diff != "" {
		t.Error(diff)
	}
}

func TestAnEventThatCommitsSecondsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	start(t, w.Store, configured("w"), func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done })
	late := w.Begin()
	first := w.Insert(late, "s", "", outboxtest.Touch("a"))
	began, published := time.Now(), 0
	w.Await("the worker has moved on for good", func() bool {
		if w.finished() == published {
			w.Publish("s", outboxtest.Touch("b"))
			published++
		}
		return time.Since(began) > 1500*time.Millisecond
	})
	w.Commit(late)
	w.Await("the late event completes", func() bool { return w.State(first) == "completed done" })
}

// The CMS commits one event of a media late, and then publishes the next. Many
// other events, which the worker sees meanwhile, change nothing.
func TestALateEventRunsBeforeWhatItsPublishersSuccessorsPublish(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	start(t, w.Store, configured("w", func(c *subscriber.Config) { c.LaneConcurrency = 8 }),
		func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done })
	var want []int64
	for range 20 {
		late := w.Begin()
		want = append(want, w.Insert(late, "s", "", outboxtest.Touch("a")))
		before := w.finished()
		w.Publish("s", outboxtest.Touch("b"))
		w.Publish("other", outboxtest.Touch("b"))
		w.Await("the others end", func() bool { return w.finished() == before+2 })
		w.Commit(late)
		want = append(want, w.Publish("s", outboxtest.Touch("a"))[0])
		w.Await("both end", func() bool { return w.finished() == before+4 })
	}
	got := outboxtest.All[int64](w.World, `SELECT f.sequence FROM {effects} f JOIN {outbox} e ON e.sequence = f.sequence
		WHERE e.media_id = 'a' ORDER BY f.position`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Events that commit late are found below what was read, one after the other.
func TestEveryLateEventIsReadAgainBelowWhatWasRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	start(t, w.Store, configured("w"), h.handle)
	w.runs(h, w.Publish("s", outboxtest.Touch("first"))[0], outboxtest.Done) // the worker has begun
	var late []*sqlx.Tx
	var list []int64
	for _, media := range []string{"a", "b"} {
		late = append(late, w.Begin())
		list = append(list, w.Insert(late[len(late)-1], "s", "", outboxtest.Touch(media)))
	}
	w.runs(h, w.Publish("s", outboxtest.Touch("c"))[0], outboxtest.Done)
	for i, tx := range late {
		w.Commit(tx)
		w.runs(h, list[i], outboxtest.Done)
	}
}

// Also below what was dead, and was read when an operator let it run.
func TestALateEventIsReadBelowAReplayedOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	start(t, w.Store, configured("w"), h.handle)
	w.runs(h, w.Publish("s", outboxtest.Touch("first"))[0], outboxtest.Done) // the worker has begun
	tx := w.Begin()
	late := w.Insert(tx, "s", "", outboxtest.Touch("b"))
	invalid := w.InsertRaw(w.DB, "s", "", events.MediaDeletedType, `{"media_id": 7}`)
	w.runs(h, invalid, outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined, Refused: true})
	if counts, err := w.Store.Retry(t.Context(), outbox.Filter{States: []string{outbox.Dead}},
		outbox.Action{Actor: "operator", Reason: "it is understood now"}); err != nil || counts.Changed != 1 {
		t.Fatal(counts, err)
	}
	w.runs(h, invalid, outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined})
	w.Commit(tx)
	w.runs(h, late, outboxtest.Done)
}

// A worker that gives a lane back leaves room for what commits late below all that
// it read there.
func TestALateEventIsReadByTheLanesNextHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	first := start(t, w.Store, configured("first"), h.handle)
	w.runs(h, w.Publish("s", outboxtest.Touch("first"))[0], outboxtest.Done) // the worker has begun
	tx := w.Begin()
	late := w.Insert(tx, "s", "", outboxtest.Touch("a"))
	w.runs(h, w.Publish("s", outboxtest.Touch("b"))[0], outboxtest.Done)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	w.Commit(tx)
	start(t, w.Another(), configured("second"), h.handle)
	w.runs(h, late, outboxtest.Done)
}

// A look sees what is published after it and in what it saw gaps, and nothing else.
func TestALookSeesEachEventOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.Publish("s", outboxtest.Touch("before"))
	feed, err := subscriber.Begin(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	look := func(want ...int64) {
		t.Helper()
		got, err := feed.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(append([]int64{}, want...), got); diff != "" {
			t.Error(diff)
		}
	}
	look()
	late, never := w.Begin(), w.Begin()
	first := w.Insert(late, "s", "", outboxtest.Touch("a"))
	w.Insert(never, "s", "", outboxtest.Touch("a"))
	look(w.Publish("s", outboxtest.Touch("b"), outboxtest.Touch("c"))...)
	look()
	w.Commit(late)
	look(append([]int64{first}, w.Publish("t", outboxtest.Touch("a"))...)...)
	if feed.Gaps() != 1 {
		t.Errorf("%d gaps are left, want that of the transaction that is open", feed.Gaps())
	}
	if err := never.Rollback(); err != nil {
		t.Fatal(err)
	}
	look()
	if feed.Gaps() != 0 {
		t.Errorf("%d gaps are left of transactions that have ended", feed.Gaps())
	}
}
