package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// A deletion supersedes what waits before it, so nothing will ever let go of
// what waits behind that.
func TestADeletionLetsGoOfWhatWaitsBehindWhatItSupersedes(t *testing.T) {
	each(t, func(w *world) {
		waits := w.PublishIn("s", "dev", outboxtest.Touch("a"))[0]
		deletion := w.PublishIn("s", "dev", events.EnvironmentDeleted{})[0]
		after := w.PublishIn("s", "dev", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("w")
		w.Settle(lane, waits, outboxtest.RetryIn(time.Hour))
		found := w.Read(lane.LaneID)
		if diff := cmp.Diff([]int64{after}, w.Park(lane, nil, found...)); diff != "" {
			w.T.Fatalf("parked: %s", diff)
		}
		w.Settle(lane, deletion, outboxtest.Done)
		if diff := cmp.Diff([]int64{after}, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
		if got := w.State(waits); got != "completed superseded" {
			w.T.Errorf("what waited before the deletion is %s", got)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {holds}`); n > 0 {
			w.T.Errorf("%d holds are left", n)
		}
	})
}

func TestEverythingWaitsForABarrierThatIsRetried(t *testing.T) {
	each(t, func(w *world) {
		barrier := w.PublishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		list := w.PublishIn("s", "dev", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("a"))
		w.Want()
		w.Exec(`UPDATE {lanes} SET gate_sequence = NULL`)
		var lane outbox.Lane
		for _, l := range w.Claim("w") {
			if l.EnvironmentID == "dev" {
				lane = l
			}
		}
		if ran := w.runAll(lane, barrier); len(ran) > 0 {
			w.T.Errorf("ran %v before the barrier", ran)
		}
		w.Promote()
		if diff := cmp.Diff(append([]int64{barrier}, list...), w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
	})
}

// An ended event must hold nothing back, however late its holder parks it.
func TestAnEndedEventGetsNoHolds(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		first, second := w.Event(lane.LaneID, list[0]), w.Event(lane.LaneID, list[1])
		third := w.Event(lane.LaneID, list[2])
		w.SettleEvent(lane, third, outboxtest.Done)
		w.SettleEvent(lane, first, outboxtest.RetryIn(time.Hour))
		w.SettleEvent(lane, second, outboxtest.Done) // as a deletion's superseding would
		w.Park(lane, []*outbox.Event{third}, second)
		if got := outboxtest.All[int64](w.World, `SELECT DISTINCT sequence FROM {holds}`); !cmp.Equal([]int64{list[0]}, got) {
			w.T.Errorf("%v hold others back, only %d may", got, list[0])
		}
	})
}

func TestAMarkedEventThatWasParkedStaysParked(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		first, second := w.Event(lane.LaneID, list[0]), w.Event(lane.LaneID, list[1])
		w.SettleEvent(lane, first, outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Park(lane, nil, second)
		// The marks come late: neither runs any more.
		if err := w.Store.MarkRunning(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}, []*outbox.Event{first, second}); err != nil {
			w.T.Fatal(err)
		}
		if got := []string{w.State(list[0]), w.State(list[1])}; !cmp.Equal([]string{"retryable server_error", "available"}, got) {
			w.T.Errorf("states %v", got)
		}
		w.Promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
	})
}

// The same, seen through a whole lane with much going on.
func TestARandomLaneEndsInOrder(t *testing.T) {
	each(t, func(w *world) {
		seed := uint64(time.Now().UnixNano())
		w.T.Logf("seed %d", seed)
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
			sequence := w.Publish("s", outboxtest.Touch(media, from, to))[0]
			list = append(list, sequence)
			shared[sequence] = []string{"m:" + media, from, to}
		}
		lane := w.ClaimOne("w")
		for range 6 {
			var broken []int64
			for _, sequence := range list {
				if next(3) == 0 {
					broken = append(broken, sequence)
				}
			}
			w.runAll(lane, broken...)
			w.Promote()
		}
		w.runAll(lane)
		order := w.Effects()
		if len(order) != len(list) {
			w.T.Fatalf("%d of %d events completed\n%s", len(order), len(list), w.Dump())
		}
		outboxtest.CheckOrder(w.T, order, shared)
	})
}

// Events after the first creation wait for its snapshot, whatever follows.
func TestTheFirstOfTwoCopiesKeepsTheGate(t *testing.T) {
	each(t, func(w *world) {
		first := w.PublishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		w.Want()
		w.PublishIn("s", "test", events.EnvironmentCreated{EnvironmentServiceID: "test"})
		w.Want()
		source := outboxtest.One[int64](w.World, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		if gate := w.gate(source); gate == nil || *gate != first {
			w.T.Errorf("the gate is at %v, want %d", gate, first)
		}
	})
}

// gate is from which event on a lane is read when the snapshot of it was taken.
func (w *world) gate(laneID int64) *int64 {
	w.T.Helper()
	return outboxtest.One[*int64](w.World, `SELECT gate_sequence FROM {lanes} WHERE lane_id = ?`, laneID)
}

func TestTheSourceOfACopyWaitsForItsSnapshot(t *testing.T) {
	each(t, func(w *world) {
		before := w.Publish("s", outboxtest.Touch("a"))[0]
		created := w.PublishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		after := w.Publish("s", outboxtest.Touch("b"))[0]
		gates, err := w.Store.NoteCreations(w.T.Context())
		if err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(map[outbox.Environment]int64{{ServiceID: "s"}: created}, gates); diff != "" {
			w.T.Errorf("gates: %s", diff)
		}
		source := outboxtest.One[int64](w.World, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		if diff := cmp.Diff([]int64{before}, outboxtest.Sequences(w.Read(source))); diff != "" {
			w.T.Errorf("before the snapshot: %s", diff)
		}
		if gate := w.gate(source); gate == nil || *gate != created {
			w.T.Errorf("the gate is at %v, want %d", gate, created)
		}
		w.Exec(`UPDATE {copies} SET state = 'active'`)
		w.Exec(`UPDATE {lanes} SET gate_sequence = NULL`)
		found := w.ReadAfter(source, before)
		if diff := cmp.Diff([]int64{after}, outboxtest.Sequences(found)); diff != "" {
			w.T.Errorf("after the snapshot: %s", diff)
		}
		if len(found) > 0 && !found[0].Copying {
			w.T.Error("a later event doesn't know of the copy that is owed")
		}
		if gates, err := w.Store.NoteCreations(w.T.Context()); err != nil || len(gates) > 0 {
			w.T.Errorf("noted again: %v, %v", gates, err)
		}
	})
}
