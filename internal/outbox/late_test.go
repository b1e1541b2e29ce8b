package outbox_test

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
)

// begin opens a transaction of the CMS.
func (w *world) begin() *sqlx.Tx {
	w.t.Helper()
	tx, err := w.db.BeginTxx(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = tx.Rollback() }) // it may have ended
	return tx
}

func (w *world) commit(tx *sqlx.Tx) {
	w.t.Helper()
	if err := tx.Commit(); err != nil {
		w.t.Fatal(err)
	}
}

// runs waits until the event runs, and lets it end.
func (w *world) runs(h *hands, sequence int64, verdict outbox.Verdict) {
	w.t.Helper()
	w.await("it runs", func() bool { return slices.Contains(h.running(), sequence) })
	h.end(sequence, verdict)
	w.await("it ends", func() bool { return w.state(sequence) != "available" && w.state(sequence) != "running" })
}

func TestAnEventThatCommitsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	start(t, w.store, configured("w"), h.handle)
	w.runs(h, w.publish("s", touch("a"))[0], done) // the worker has begun
	early, rolledBack := w.begin(), w.begin()
	first := w.insert(early, "s", "", touch("a"))
	w.insert(rolledBack, "s", "", touch("a"))
	third := w.publish("s", touch("a"))[0]
	w.runs(h, third, done)
	if err := rolledBack.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.commit(early)
	fourth := w.publish("s", touch("a"))[0]
	w.runs(h, first, done)
	w.runs(h, fourth, done)
	if diff := cmp.Diff([]int64{third, first, fourth}, w.effects()[1:]); diff != "" {
		t.Error(diff)
	}
}

// A transaction that was open when the worker began may publish below all that the
// worker saw then.
func TestAnEventOfATransactionThatWasOpenAtTheBeginningIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	early := w.begin()
	first := w.insert(early, "s", "", touch("a"))
	other := w.publish("s", touch("b"))[0]
	h := newHands()
	start(t, w.store, configured("w"), h.handle)
	w.runs(h, other, done)
	w.commit(early)
	second := w.publish("s", touch("a"))[0]
	w.runs(h, first, done)
	w.runs(h, second, done)
	if diff := cmp.Diff([]int64{other, first, second}, w.effects()); diff != "" {
		t.Error(diff)
	}
}

func TestAnEventThatCommitsSecondsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	start(t, w.store, configured("w"), func(context.Context, *outbox.Delivery) *outbox.Verdict { return &done })
	late := w.begin()
	first := w.insert(late, "s", "", touch("a"))
	began, published := time.Now(), 0
	w.await("the worker has moved on for good", func() bool {
		if w.finished() == published {
			w.publish("s", touch("b"))
			published++
		}
		return time.Since(began) > 1500*time.Millisecond
	})
	w.commit(late)
	w.await("the late event completes", func() bool { return w.state(first) == "completed done" })
}

// The CMS commits one event of a media late, and then publishes the next. Many
// other events, which the worker sees meanwhile, change nothing.
func TestALateEventRunsBeforeWhatItsPublishersSuccessorsPublish(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	start(t, w.store, configured("w", func(c *outbox.Config) { c.LaneConcurrency = 8 }),
		func(context.Context, *outbox.Delivery) *outbox.Verdict { return &done })
	var want []int64
	for range 20 {
		late := w.begin()
		want = append(want, w.insert(late, "s", "", touch("a")))
		before := w.finished()
		w.publish("s", touch("b"))
		w.publish("other", touch("b"))
		w.await("the others end", func() bool { return w.finished() == before+2 })
		w.commit(late)
		want = append(want, w.publish("s", touch("a"))[0])
		w.await("both end", func() bool { return w.finished() == before+4 })
	}
	got := all[int64](w, `SELECT f.sequence FROM {effects} f JOIN {outbox} e ON e.sequence = f.sequence
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
	start(t, w.store, configured("w"), h.handle)
	w.runs(h, w.publish("s", touch("first"))[0], done) // the worker has begun
	var late []*sqlx.Tx
	var list []int64
	for _, media := range []string{"a", "b"} {
		late = append(late, w.begin())
		list = append(list, w.insert(late[len(late)-1], "s", "", touch(media)))
	}
	w.runs(h, w.publish("s", touch("c"))[0], done)
	for i, tx := range late {
		w.commit(tx)
		w.runs(h, list[i], done)
	}
}

// Also below what was dead, and was read when an operator let it run.
func TestALateEventIsReadBelowAReplayedOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	start(t, w.store, configured("w"), h.handle)
	w.runs(h, w.publish("s", touch("first"))[0], done) // the worker has begun
	tx := w.begin()
	late := w.insert(tx, "s", "", touch("b"))
	invalid := w.insertRaw(w.db, "s", "", events.MediaDeletedType, `{"media_id": 7}`)
	w.runs(h, invalid, outbox.Verdict{Kind: outbox.Die, Failure: ruined, Refused: true})
	if counts, err := w.store.Retry(t.Context(), outbox.Filter{States: []string{outbox.Dead}},
		outbox.Action{Actor: "operator", Reason: "it is understood now"}); err != nil || counts.Changed != 1 {
		t.Fatal(counts, err)
	}
	w.runs(h, invalid, outbox.Verdict{Kind: outbox.Die, Failure: ruined})
	w.commit(tx)
	w.runs(h, late, done)
}

// A worker that gives a lane back leaves room for what commits late below all that
// it read there.
func TestALateEventIsReadByTheLanesNextHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	first := start(t, w.store, configured("first"), h.handle)
	w.runs(h, w.publish("s", touch("first"))[0], done) // the worker has begun
	tx := w.begin()
	late := w.insert(tx, "s", "", touch("a"))
	w.runs(h, w.publish("s", touch("b"))[0], done)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	w.commit(tx)
	start(t, w.another(), configured("second"), h.handle)
	w.runs(h, late, done)
}

// A look sees what is published after it and in what it saw gaps, and nothing else.
func TestALookSeesEachEventOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.publish("s", touch("before"))
	feed, err := w.store.Feed(t.Context())
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
	late, never := w.begin(), w.begin()
	first := w.insert(late, "s", "", touch("a"))
	w.insert(never, "s", "", touch("a"))
	look(w.publish("s", touch("b"), touch("c"))...)
	look()
	w.commit(late)
	look(append([]int64{first}, w.publish("t", touch("a"))...)...)
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
