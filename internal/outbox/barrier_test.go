package outbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// A deletion supersedes what waits before it, so nothing will ever let go of
// what waits behind that.
func TestADeletionLetsGoOfWhatWaitsBehindWhatItSupersedes(t *testing.T) {
	each(t, func(w *world) {
		waits := w.publishIn("s", "dev", touch("a"))[0]
		deletion := w.publishIn("s", "dev", events.EnvironmentDeleted{})[0]
		after := w.publishIn("s", "dev", touch("a"))[0]
		lane := w.claimOne("w")
		w.settle(lane, waits, retryIn(time.Hour))
		found := w.read(lane.LaneID)
		if diff := cmp.Diff([]int64{after}, w.park(lane, nil, found...)); diff != "" {
			w.t.Fatalf("parked: %s", diff)
		}
		w.settle(lane, deletion, done)
		if diff := cmp.Diff([]int64{after}, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
		if got := w.state(waits); got != "completed superseded" {
			w.t.Errorf("what waited before the deletion is %s", got)
		}
		if n := one[int](w, `SELECT count(*) FROM {holds}`); n > 0 {
			w.t.Errorf("%d holds are left", n)
		}
	})
}

func TestEverythingWaitsForABarrierThatIsRetried(t *testing.T) {
	each(t, func(w *world) {
		barrier := w.publishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		list := w.publishIn("s", "dev", touch("a"), touch("b"), touch("a"))
		w.want()
		w.exec(`UPDATE {lanes} SET gate_sequence = NULL`)
		var lane outbox.Lane
		for _, l := range w.claim("w") {
			if l.EnvironmentID == "dev" {
				lane = l
			}
		}
		if ran := w.runAll(lane, barrier); len(ran) > 0 {
			w.t.Errorf("ran %v before the barrier", ran)
		}
		w.promote()
		if diff := cmp.Diff(append([]int64{barrier}, list...), w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
	})
}

// An ended event must hold nothing back, however late its holder parks it.
func TestAnEndedEventGetsNoHolds(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"), touch("b"))
		lane := w.claimOne("w")
		first, second := w.event(lane.LaneID, list[0]), w.event(lane.LaneID, list[1])
		third := w.event(lane.LaneID, list[2])
		w.settleEvent(lane, third, done)
		w.settleEvent(lane, first, retryIn(time.Hour))
		w.settleEvent(lane, second, done) // as a deletion's superseding would
		w.park(lane, []*outbox.Event{third}, second)
		if got := all[int64](w, `SELECT DISTINCT sequence FROM {holds}`); !cmp.Equal([]int64{list[0]}, got) {
			w.t.Errorf("%v hold others back, only %d may", got, list[0])
		}
	})
}

func TestAMarkedEventThatWasParkedStaysParked(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		lane := w.claimOne("w")
		first, second := w.event(lane.LaneID, list[0]), w.event(lane.LaneID, list[1])
		w.settleEvent(lane, first, outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		w.settle(lane, list[0], retryIn(time.Hour))
		w.park(lane, nil, second)
		// The marks come late: neither runs any more.
		if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(lane)}, []*outbox.Event{first, second}); err != nil {
			w.t.Fatal(err)
		}
		if got := []string{w.state(list[0]), w.state(list[1])}; !cmp.Equal([]string{"retryable server_error", "available"}, got) {
			w.t.Errorf("states %v", got)
		}
		w.promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
	})
}

// The same, seen through a whole lane with much going on.
func TestARandomLaneEndsInOrder(t *testing.T) {
	each(t, func(w *world) {
		seed := uint64(time.Now().UnixNano())
		w.t.Logf("seed %d", seed)
		next := func(n int) int { // xorshift
			seed ^= seed << 13
			seed ^= seed >> 7
			seed ^= seed << 17
			return int(seed % uint64(n))
		}
		name := func() string { return string(rune('p' + next(4))) }
		var list []int64
		shared := make(map[int64][]string)
		for range 25 {
			media, from, to := string(rune('a'+next(4))), name(), name()
			sequence := w.publish("s", touch(media, from, to))[0]
			list = append(list, sequence)
			shared[sequence] = []string{"m:" + media, from, to}
		}
		lane := w.claimOne("w")
		for range 6 {
			var broken []int64
			for _, sequence := range list {
				if next(3) == 0 {
					broken = append(broken, sequence)
				}
			}
			w.runAll(lane, broken...)
			w.promote()
		}
		w.runAll(lane)
		order := w.effects()
		if len(order) != len(list) {
			w.t.Fatalf("%d of %d events completed\n%s", len(order), len(list), w.dump())
		}
		checkOrder(w.t, order, shared)
	})
}

// checkOrder holds the order of effects against the sequences of those that
// share a resource.
func checkOrder(t testing.TB, order []int64, shared map[int64][]string) {
	t.Helper()
	last := make(map[string]int64)
	for _, sequence := range order {
		for _, resource := range shared[sequence] {
			if last[resource] > sequence {
				t.Errorf("%d took effect after %d, with which it shares %s", sequence, last[resource], resource)
			}
			last[resource] = max(last[resource], sequence)
		}
	}
}

// Events after the first creation wait for its snapshot, whatever follows.
func TestTheFirstOfTwoCopiesKeepsTheGate(t *testing.T) {
	each(t, func(w *world) {
		first := w.publishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		w.want()
		w.publishIn("s", "test", events.EnvironmentCreated{EnvironmentServiceID: "test"})
		w.want()
		source := one[int64](w, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		if gate := w.gate(source); gate == nil || *gate != first {
			w.t.Errorf("the gate is at %v, want %d", gate, first)
		}
	})
}

// gate is from which event on a lane is read when the snapshot of it was taken.
func (w *world) gate(laneID int64) *int64 {
	w.t.Helper()
	return one[*int64](w, `SELECT gate_sequence FROM {lanes} WHERE lane_id = ?`, laneID)
}

func TestTheSourceOfACopyWaitsForItsSnapshot(t *testing.T) {
	each(t, func(w *world) {
		before := w.publish("s", touch("a"))[0]
		created := w.publishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		after := w.publish("s", touch("b"))[0]
		gates, err := w.store.NoteCreations(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(map[outbox.Environment]int64{{ServiceID: "s"}: created}, gates); diff != "" {
			w.t.Errorf("gates: %s", diff)
		}
		source := one[int64](w, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		if diff := cmp.Diff([]int64{before}, sequences(w.read(source))); diff != "" {
			w.t.Errorf("before the snapshot: %s", diff)
		}
		if gate := w.gate(source); gate == nil || *gate != created {
			w.t.Errorf("the gate is at %v, want %d", gate, created)
		}
		w.exec(`UPDATE {copies} SET state = 'active'`)
		w.exec(`UPDATE {lanes} SET gate_sequence = NULL`)
		found := w.readAfter(source, before)
		if diff := cmp.Diff([]int64{after}, sequences(found)); diff != "" {
			w.t.Errorf("after the snapshot: %s", diff)
		}
		if len(found) > 0 && !found[0].Copying {
			w.t.Error("a later event doesn't know of the copy that is owed")
		}
		if gates, err := w.store.NoteCreations(w.t.Context()); err != nil || len(gates) > 0 {
			w.t.Errorf("noted again: %v, %v", gates, err)
		}
	})
}

// A worker that sees an environment created starts nothing of its source that was
// published later, whether it has read that or not.
func TestAWorkerStartsNothingOfASourceBeforeItsSnapshot(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		due := make(chan struct{}, 100)
		start(w.t, w.store, configured("w", func(c *outbox.Config) {
			c.LaneConcurrency = 1
			c.Created = func() { due <- struct{}{} }
		}), h.handle)
		first := w.publish("s", touch("a"))[0]
		w.await("the first runs", func() bool { return h.runs(first) })
		tx := w.begin()
		before := w.insert(tx, "s", "", touch("before"))
		created := w.insert(tx, "s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})
		after := w.insert(tx, "s", "", touch("after"))
		w.commit(tx)
		<-due // somebody is told that a snapshot is due
		after2 := w.publish("s", touch("after"))[0]
		w.runs(h, first, done)
		w.await("the one before runs", func() bool { return h.runs(before, created) || h.runs(before) })
		w.runs(h, before, done)
		w.settles(h)
		if running := h.running(); slices.Contains(running, after) || slices.Contains(running, after2) {
			w.t.Fatalf("%v run before the snapshot after %d", running, created)
		}
		source := one[int64](w, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		w.exec(`UPDATE {copies} SET state = 'active'`)
		w.exec(outbox.SetGate, source, source)
		w.await("the later one runs", func() bool { return slices.Contains(h.running(), after) })
		if !h.delivery(after).Event.Copying {
			w.t.Error("a later event doesn't know of the copy that is owed")
		}
		w.runs(h, after, done)
		w.runs(h, after2, done)
	})
}

// The event that created the environment may commit late, when what comes after it
// was read already and waits.
func TestWhatWaitsInMemoryHeedsASnapshotThatIsDueLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	h := newHands()
	due := make(chan struct{}, 100)
	worker := start(t, w.store, configured("w", func(c *outbox.Config) {
		c.LaneConcurrency = 1
		c.Created = func() { due <- struct{}{} }
	}), h.handle)
	first := w.publish("s", touch("a"))[0]
	w.await("the first runs", func() bool { return h.runs(first) })
	tx := w.begin()
	w.insert(tx, "s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})
	after := w.publish("s", touch("after"))[0]
	w.await("the later one was read", func() bool { return worker.Waits(after) })
	w.commit(tx)
	<-due
	h.end(first, done)
	w.await("the first has ended", func() bool { return w.state(first) == "completed done" })
	w.settles(h)
	if slices.Contains(h.running(), after) {
		t.Fatal("the later one runs before the snapshot")
	}
	source := one[int64](w, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
	w.exec(`UPDATE {copies} SET state = 'active'`)
	w.exec(outbox.SetGate, source, source)
	w.runs(h, after, done)
}
