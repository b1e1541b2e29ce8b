package outbox_test

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// runAll runs a lane, one event after the other, as its holder would: what
// must wait is parked, the lowest event that is left completes. The events in
// broken are left to their retry.
func (w *world) runAll(lane outbox.Lane, broken ...int64) []int64 {
	w.t.Helper()
	order := []int64{}
	for range 10_000 {
		found := w.read(lane.LaneID)
		slices.SortFunc(found, func(a, b *outbox.Event) int { return int(a.Sequence - b.Sequence) })
		parked := w.park(lane, nil, found...)
		at := slices.IndexFunc(found, func(e *outbox.Event) bool { return !slices.Contains(parked, e.Sequence) })
		if at < 0 {
			return order
		}
		if slices.Contains(broken, found[at].Sequence) {
			w.settleEvent(lane, found[at], retryIn(time.Hour))
			continue
		}
		w.settleEvent(lane, found[at], done)
		order = append(order, found[at].Sequence)
	}
	w.t.Fatalf("the lane never comes to rest\n%s", w.dump())
	return nil
}

func TestARetryHoldsBackOnlyWhatSharesAMediaOrName(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s",
			touch("a", "x"),      // 0: fails
			touch("b", "y"),      // 1: shares nothing
			touch("a", "z"),      // 2: the media
			touch("c", "x"),      // 3: the name
			touch("d", "p", "x"), // 4: the name, as a target
			touch("e", "z"),      // 5: the name of what waits
			touch("f", "q"),      // 6: nothing
		)
		lane := w.claimOne("w")
		ran := w.runAll(lane, list[0])
		if diff := cmp.Diff([]int64{list[1], list[6]}, ran); diff != "" {
			w.t.Errorf("ran while the first waited for its retry: %s", diff)
		}
		w.promote()
		ran = w.runAll(lane)
		if diff := cmp.Diff([]int64{list[0], list[2], list[3], list[4], list[5]}, ran); diff != "" {
			w.t.Errorf("ran after that: %s", diff)
		}
		if n := one[int](w, `SELECT count(*) FROM {holds}`); n > 0 {
			w.t.Errorf("%d holds are left", n)
		}
	})
}

func TestALongChainBehindARetryRunsInOrder(t *testing.T) {
	each(t, func(w *world) {
		var chain []int64
		for i := range 50 {
			media := "a"
			if i%3 == 2 {
				media = "b" // crosses over by a name
			}
			chain = append(chain, w.publish("s", touch(media, "n"+string(rune('0'+i%2)), "shared"))...)
		}
		lane := w.claimOne("w")
		if ran := w.runAll(lane, chain[0]); len(ran) > 0 {
			w.t.Errorf("ran %v", ran)
		}
		if n := one[int](w, `SELECT count(*) FROM {outbox} WHERE NOT parked`); n > 0 {
			w.t.Errorf("%d events fill the lane's window while they wait", n)
		}
		w.promote()
		if diff := cmp.Diff(chain, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestEachRetryOfAChainHoldsBackTheRest(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"), touch("a"))
		lane := w.claimOne("w")
		w.runAll(lane, list[0])
		w.promote()
		if diff := cmp.Diff([]int64{list[0]}, w.runAll(lane, list[1])); diff != "" {
			w.t.Error(diff)
		}
		w.promote()
		if diff := cmp.Diff([]int64{list[1], list[2]}, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestADeadEventLetsGoOfWhatWaits(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		lane := w.claimOne("w")
		w.runAll(lane, list[0])
		w.promote()
		w.settle(lane, list[0], outbox.Verdict{Kind: outbox.Die, Failure: ruined})
		if diff := cmp.Diff([]int64{list[1]}, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
		if got := w.state(list[0]); got != "dead source_gone" {
			w.t.Errorf("the first is %s", got)
		}
	})
}

func TestALateEventTakesItsPlaceInTheOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	first := w.publish("s", touch("a"))[0]
	late, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	second := w.insert(late, "s", "", touch("a"))
	third := w.publish("s", touch("a"))[0]
	lane := w.claimOne("w")
	w.runAll(lane, first) // the third is parked behind it
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.runAll(lane)
	w.promote()
	if diff := cmp.Diff([]int64{first, second, third}, w.runAll(lane)); diff != "" {
		t.Error(diff)
	}
}

// A long event must not keep the lane's other media from running because what
// waits for it fills the window.
func TestWhatWaitsForALongEventLeavesTheWindow(t *testing.T) {
	each(t, func(w *world) {
		long := w.publish("s", touch("a"))[0]
		var waiting []int64
		for range 40 {
			waiting = append(waiting, w.publish("s", touch("a"))...)
		}
		other := w.publish("s", touch("b"))[0]
		lane := w.claimOne("w")
		running := w.event(lane.LaneID, long)
		found := w.read(lane.LaneID)
		parked := w.park(lane, []*outbox.Event{running}, found[1:]...)
		if diff := cmp.Diff(waiting, parked); diff != "" {
			w.t.Fatal(diff)
		}
		if diff := cmp.Diff([]int64{long, other}, sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Error(diff)
		}
		running.Holding = true
		w.settleEvent(lane, running, done)
		want := append(slices.Clone(waiting), other)
		slices.Sort(want)
		got := w.runAll(lane)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Error(diff)
		}
		if diff := cmp.Diff(waiting, slices.DeleteFunc(w.effects(), func(s int64) bool { return s == other || s == long })); diff != "" {
			w.t.Errorf("the order: %s", diff)
		}
	})
}

// An event is parked behind one that ends at this very moment: whichever
// transaction is first, it must run afterwards.
func TestParkingAndReleasingNeverMissEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	const pairs = 60
	for i := range pairs {
		media := string(rune('A' + i))
		w.publish("s", touch(media), touch(media))
	}
	lane := w.claimOne("w")
	found := w.read(lane.LaneID)
	for i := 0; i < len(found); i += 2 {
		w.settleEvent(lane, found[i], retryIn(time.Hour))
	}
	w.promote()
	for i := 0; i < len(found); i += 2 {
		first, second := w.event(lane.LaneID, found[i].Sequence), found[i+1]
		var both sync.WaitGroup
		both.Go(func() { w.settleEvent(lane, first, done) })
		both.Go(func() { w.park(lane, nil, second) })
		both.Wait()
		if !slices.Contains(sequences(w.read(lane.LaneID)), second.Sequence) {
			t.Fatalf("pair %d: the second waits for ever\n%s", i/2, w.dump())
		}
		w.settle(lane, second.Sequence, done)
	}
	if n := one[int](w, `SELECT count(*) FROM {holds}`); n > 0 {
		t.Errorf("%d holds are left", n)
	}
}

func TestAnEventDefersBehindAnotherMedia(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a", "x"), touch("b", "y"))
		lane := w.claimOne("w")
		w.settle(lane, list[0], retryIn(time.Hour))
		w.settle(lane, list[1], outbox.Verdict{Kind: outbox.Defer, Behind: []string{"m:a"}})
		if got := w.state(list[1]); got != "available" {
			w.t.Errorf("the deferred event is %s", got)
		}
		if ran := w.runAll(lane); len(ran) > 0 {
			w.t.Errorf("ran %v although it waits for media a", ran)
		}
		w.promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
		if n := one[int](w, `SELECT sum(attempt_count) FROM {outbox} WHERE sequence = ?`, list[1]); n != 1 {
			w.t.Errorf("deferring used up an attempt: %d count", n)
		}
	})
}

func TestADeferredEventComesBackWithoutHavingLostAnAttempt(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		lane := w.claimOne("w")
		w.settle(lane, list[0], outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour})
		if ran := w.runAll(lane); len(ran) > 0 {
			w.t.Errorf("ran %v before the deferred one", ran)
		}
		w.promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.t.Error(diff)
		}
		if n := one[int](w, `SELECT count(*) FROM {attempts}`); n != 0 {
			w.t.Errorf("%d attempts are kept of what was only deferred", n)
		}
	})
}

func TestAnInterruptedEventIsReadAgainBelowTheCursor(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"))
		lane := w.claimOne("w")
		w.settle(lane, list[0], outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		if diff := cmp.Diff([]int64{list[0]}, sequences(w.readAfter(lane.LaneID, list[1]))); diff != "" {
			w.t.Error(diff)
		}
	})
}

// Requeued events that the reader has already must not hide others.
func TestReadingFindsRequeuedEventsBehindThoseItHas(t *testing.T) {
	each(t, func(w *world) {
		var list []int64
		for range 20 {
			list = append(list, w.publish("s", touch("a"))...)
		}
		lane := w.claimOne("w")
		for _, e := range w.read(lane.LaneID) {
			w.settleEvent(lane, e, outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		}
		found, err := w.store.Read(w.t.Context(), []outbox.Reading{{LaneID: lane.LaneID, After: list[19], UpTo: math.MaxInt64, Limit: 3, Known: 10}})
		if err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(list[:13], sequences(found)); diff != "" {
			w.t.Error(diff)
		}
	})
}
