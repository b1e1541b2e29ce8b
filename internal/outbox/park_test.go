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
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// runAll runs a lane, one event after the other, as its holder would: what
// must wait is parked, the lowest event that is left completes. The events in
// broken are left to their retry.
func (w *world) runAll(lane outbox.Lane, broken ...int64) []int64 {
	w.T.Helper()
	order := []int64{}
	for range 10_000 {
		found := w.Read(lane.LaneID)
		slices.SortFunc(found, func(a, b *outbox.Event) int { return int(a.Sequence - b.Sequence) })
		parked := w.Park(lane, nil, found...)
		at := slices.IndexFunc(found, func(e *outbox.Event) bool { return !slices.Contains(parked, e.Sequence) })
		if at < 0 {
			return order
		}
		if slices.Contains(broken, found[at].Sequence) {
			w.SettleEvent(lane, found[at], outboxtest.RetryIn(time.Hour))
			continue
		}
		w.SettleEvent(lane, found[at], outboxtest.Done)
		order = append(order, found[at].Sequence)
	}
	w.T.Fatalf("the lane never comes to rest\n%s", w.Dump())
	return nil
}

func TestARetryHoldsBackOnlyWhatSharesAMediaOrName(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s",
			outboxtest.Touch("a", "x"),      // 0: fails
			outboxtest.Touch("b", "y"),      // 1: shares nothing
			outboxtest.Touch("a", "z"),      // 2: the media
			outboxtest.Touch("c", "x"),      // 3: the name
			outboxtest.Touch("d", "p", "x"), // 4: the name, as a target
			outboxtest.Touch("e", "z"),      // 5: the name of what waits
			outboxtest.Touch("f", "q"),      // 6: nothing
		)
		lane := w.ClaimOne("w")
		ran := w.runAll(lane, list[0])
		if diff := cmp.Diff([]int64{list[1], list[6]}, ran); diff != "" {
			w.T.Errorf("ran while the first waited for its retry: %s", diff)
		}
		w.Promote()
		ran = w.runAll(lane)
		if diff := cmp.Diff([]int64{list[0], list[2], list[3], list[4], list[5]}, ran); diff != "" {
			w.T.Errorf("ran after that: %s", diff)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {holds}`); n > 0 {
			w.T.Errorf("%d holds are left", n)
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
			chain = append(chain, w.Publish("s", outboxtest.Touch(media, "n"+string(rune('0'+i%2)), "shared"))...)
		}
		lane := w.ClaimOne("w")
		if ran := w.runAll(lane, chain[0]); len(ran) > 0 {
			w.T.Errorf("ran %v", ran)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE NOT parked`); n > 0 {
			w.T.Errorf("%d events fill the lane's window while they wait", n)
		}
		w.Promote()
		if diff := cmp.Diff(chain, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestEachRetryOfAChainHoldsBackTheRest(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		w.runAll(lane, list[0])
		w.Promote()
		if diff := cmp.Diff([]int64{list[0]}, w.runAll(lane, list[1])); diff != "" {
			w.T.Error(diff)
		}
		w.Promote()
		if diff := cmp.Diff([]int64{list[1], list[2]}, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestADeadEventLetsGoOfWhatWaits(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		w.runAll(lane, list[0])
		w.Promote()
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined})
		if diff := cmp.Diff([]int64{list[1]}, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
		if got := w.State(list[0]); got != "dead source_gone" {
			w.T.Errorf("the first is %s", got)
		}
	})
}

func TestALateEventTakesItsPlaceInTheOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	first := w.Publish("s", outboxtest.Touch("a"))[0]
	late, err := w.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	second := w.Insert(late, "s", "", outboxtest.Touch("a"))
	third := w.Publish("s", outboxtest.Touch("a"))[0]
	lane := w.ClaimOne("w")
	w.runAll(lane, first) // the third is parked behind it
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.runAll(lane)
	w.Promote()
	if diff := cmp.Diff([]int64{first, second, third}, w.runAll(lane)); diff != "" {
		t.Error(diff)
	}
}

// A long event must not keep the lane's other media from running because what
// waits for it fills the window.
func TestWhatWaitsForALongEventLeavesTheWindow(t *testing.T) {
	each(t, func(w *world) {
		long := w.Publish("s", outboxtest.Touch("a"))[0]
		var waiting []int64
		for range 40 {
			waiting = append(waiting, w.Publish("s", outboxtest.Touch("a"))...)
		}
		other := w.Publish("s", outboxtest.Touch("b"))[0]
		lane := w.ClaimOne("w")
		running := w.Event(lane.LaneID, long)
		found := w.Read(lane.LaneID)
		parked := w.Park(lane, []*outbox.Event{running}, found[1:]...)
		if diff := cmp.Diff(waiting, parked); diff != "" {
			w.T.Fatal(diff)
		}
		if diff := cmp.Diff([]int64{long, other}, outboxtest.Sequences(w.Read(lane.LaneID))); diff != "" {
			w.T.Error(diff)
		}
		running.Holding = true
		w.SettleEvent(lane, running, outboxtest.Done)
		want := append(slices.Clone(waiting), other)
		slices.Sort(want)
		got := w.runAll(lane)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			w.T.Error(diff)
		}
		if diff := cmp.Diff(waiting, slices.DeleteFunc(w.Effects(), func(s int64) bool { return s == other || s == long })); diff != "" {
			w.T.Errorf("the order: %s", diff)
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
		w.Publish("s", outboxtest.Touch(media), outboxtest.Touch(media))
	}
	lane := w.ClaimOne("w")
	found := w.Read(lane.LaneID)
	for i := 0; i < len(found); i += 2 {
		w.SettleEvent(lane, found[i], outboxtest.RetryIn(time.Hour))
	}
	w.Promote()
	for i := 0; i < len(found); i += 2 {
		first, second := w.Event(lane.LaneID, found[i].Sequence), found[i+1]
		var both sync.WaitGroup
		both.Go(func() { w.SettleEvent(lane, first, outboxtest.Done) })
		both.Go(func() { w.Park(lane, nil, second) })
		both.Wait()
		if !slices.Contains(outboxtest.Sequences(w.Read(lane.LaneID)), second.Sequence) {
			t.Fatalf("pair %d: the second waits for ever\n%s", i/2, w.Dump())
		}
		w.Settle(lane, second.Sequence, outboxtest.Done)
	}
	if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {holds}`); n > 0 {
		t.Errorf("%d holds are left", n)
	}
}

func TestAnEventDefersBehindAnotherMedia(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a", "x"), outboxtest.Touch("b", "y"))
		lane := w.ClaimOne("w")
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Settle(lane, list[1], outbox.Verdict{Kind: outbox.Defer, Behind: []string{"m:a"}})
		if got := w.State(list[1]); got != "available" {
			w.T.Errorf("the deferred event is %s", got)
		}
		if ran := w.runAll(lane); len(ran) > 0 {
			w.T.Errorf("ran %v although it waits for media a", ran)
		}
		w.Promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
		if n := outboxtest.One[int](w.World, `SELECT sum(attempt_count) FROM {outbox} WHERE sequence = ?`, list[1]); n != 1 {
			w.T.Errorf("deferring used up an attempt: %d count", n)
		}
	})
}

func TestADeferredEventComesBackWithoutHavingLostAnAttempt(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour})
		if ran := w.runAll(lane); len(ran) > 0 {
			w.T.Errorf("ran %v before the deferred one", ran)
		}
		w.Promote()
		if diff := cmp.Diff(list, w.runAll(lane)); diff != "" {
			w.T.Error(diff)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n != 0 {
			w.T.Errorf("%d attempts are kept of what was only deferred", n)
		}
	})
}

func TestAnInterruptedEventIsReadAgainBelowTheCursor(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		if diff := cmp.Diff([]int64{list[0]}, outboxtest.Sequences(w.ReadAfter(lane.LaneID, list[1]))); diff != "" {
			w.T.Error(diff)
		}
	})
}

// Requeued events that the reader has already must not hide others.
func TestReadingFindsRequeuedEventsBehindThoseItHas(t *testing.T) {
	each(t, func(w *world) {
		var list []int64
		for range 20 {
			list = append(list, w.Publish("s", outboxtest.Touch("a"))...)
		}
		lane := w.ClaimOne("w")
		for _, e := range w.Read(lane.LaneID) {
			w.SettleEvent(lane, e, outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		}
		found, err := w.Store.Read(w.T.Context(), []outbox.Reading{{LaneID: lane.LaneID, After: list[19], UpTo: math.MaxInt64, Limit: 3, Known: 10}})
		if err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(list[:13], outboxtest.Sequences(found)); diff != "" {
			w.T.Error(diff)
		}
	})
}
