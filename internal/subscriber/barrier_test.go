package subscriber_test

import (
	"slices"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// A worker that sees an environment created starts nothing of its source that was
// published later, whether it has read that or not.
func TestAWorkerStartsNothingOfASourceBeforeItsSnapshot(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		due := make(chan struct{}, 100)
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) {
			c.LaneConcurrency = 1
			c.Created = func() { due <- struct{}{} }
		}), h.handle)
		first := w.Publish("s", outboxtest.Touch("a"))[0]
		w.Await("the first runs", func() bool { return h.runs(first) })
		tx := w.Begin()
		before := w.Insert(tx, "s", "", outboxtest.Touch("before"))
		created := w.Insert(tx, "s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})
		after := w.Insert(tx, "s", "", outboxtest.Touch("after"))
		w.Commit(tx)
		<-due // somebody is told that a snapshot is due
		after2 := w.Publish("s", outboxtest.Touch("after"))[0]
		w.runs(h, first, outboxtest.Done)
		w.Await("the one before runs", func() bool { return h.runs(before, created) || h.runs(before) })
		w.runs(h, before, outboxtest.Done)
		w.settles(h)
		if running := h.running(); slices.Contains(running, after) || slices.Contains(running, after2) {
			w.T.Fatalf("%v run before the snapshot after %d", running, created)
		}
		source := outboxtest.One[int64](w.World, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		w.Exec(`UPDATE {copies} SET state = 'active'`)
		w.Exec(outbox.SetGate, source, source)
		w.Await("the later one runs", func() bool { return slices.Contains(h.running(), after) })
		if !h.delivery(after).Event.Copying {
			w.T.Error("a later event doesn't know of the copy that is owed")
		}
		w.runs(h, after, outboxtest.Done)
		w.runs(h, after2, outboxtest.Done)
	})
}

// The event that created the environment may commit late, when what comes after it
// was read already and waits.
func TestWhatWaitsInMemoryHeedsASnapshotThatIsDueLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	due := make(chan struct{}, 100)
	worker := start(t, w.Store, configured("w", func(c *subscriber.Config) {
		c.LaneConcurrency = 1
		c.Created = func() { due <- struct{}{} }
	}), h.handle)
	first := w.Publish("s", outboxtest.Touch("a"))[0]
	w.Await("the first runs", func() bool { return h.runs(first) })
	tx := w.Begin()
	w.Insert(tx, "s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})
	after := w.Publish("s", outboxtest.Touch("after"))[0]
	w.Await("the later one was read", func() bool { return worker.Waits(after) })
	w.Commit(tx)
	<-due
	h.end(first, outboxtest.Done)
	w.Await("the first has ended", func() bool { return w.State(first) == "completed done" })
	w.settles(h)
	if slices.Contains(h.running(), after) {
		t.Fatal("the later one runs before the snapshot")
	}
	source := outboxtest.One[int64](w.World, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
	w.Exec(`UPDATE {copies} SET state = 'active'`)
	w.Exec(outbox.SetGate, source, source)
	w.runs(h, after, outboxtest.Done)
}
