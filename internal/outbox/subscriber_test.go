package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

func verdictOf(class failure.Class, code string, kind outbox.Kind, delay time.Duration) outbox.Verdict {
	return outbox.Verdict{Kind: kind, Delay: delay, Failure: failure.New(class, code, "%s", code)}
}

// publishMany publishes n events of a service, each of a media of its own.
func (w *world) publishMany(service string, n int) []int64 {
	w.t.Helper()
	list := make([]events.Event, n)
	for i := range list {
		list[i] = touch(strconv.Itoa(i))
	}
	return w.publish(service, list...)
}

func TestNeverMoreInFlightThanTheLimits(t *testing.T) {
	each(t, func(w *world) {
		const workers, lane = 6, 4
		w.publishMany("a", 40)
		w.publishMany("b", 40)
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = workers, lane }), h.handle)
		most := map[string]int{}
		w.await("all have ended", func() bool {
			for _, service := range []string{"a", "b"} {
				most[service] = max(most[service], h.runningOf(service))
			}
			if running := h.running(); len(running) > 0 {
				h.end(running[0], done)
			}
			return w.finished() == 80
		})
		if h.most > workers || most["a"] > lane || most["b"] > lane {
			w.t.Errorf("%d ran at once, at most %v of one integration; the limits are %d and %d", h.most, most, workers, lane)
		}
	})
}

// An operator replays more events than are read at once. They come before what was
// published since.
func TestReplayedEventsRunBeforeWhatWasPublishedSince(t *testing.T) {
	each(t, func(w *world) {
		var list []events.Event
		for n := range 100 {
			list = append(list, touch(fmt.Sprint("m", n)))
		}
		dead := w.publish("s", list...)
		var mu sync.Mutex
		var mended bool
		var started []int64
		start(w.t, w.store, configured("w"), func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			mu.Lock()
			defer mu.Unlock()
			if !mended {
				return &outbox.Verdict{Kind: outbox.Die, Failure: ruined}
			}
			started = append(started, d.Event.Sequence)
			return &done
		})
		w.await("all to be dead", func() bool { return w.finished() == len(dead) })
		mu.Lock()
		mended = true
		mu.Unlock()
		if _, err := w.store.Retry(w.t.Context(), outbox.Filter{ServiceID: "s"}, outbox.Action{Actor: "operator", Reason: "mended"}); err != nil {
			w.t.Fatal(err)
		}
		last := dead[len(dead)-1]
		later := w.publish("s", touch("m99"))[0]
		w.await("all to be done", func() bool { return w.finished() == len(dead)+1 })
		mu.Lock()
		defer mu.Unlock()
		if slices.Index(started, later) < slices.Index(started, last) {
			w.t.Errorf("%d started before %d, of the same media", later, last)
		}
	})
}

func TestALaneUsesAllThatItMay(t *testing.T) {
	each(t, func(w *world) {
		w.publishMany("a", 60)
		h := newHands()
		start(w.t, w.store, configured("w"), h.handle)
		w.await("two run at first", func() bool { return len(h.running()) == 2 })
		for range 4 {
			w.await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], done)
		}
		w.await("four run after successes", func() bool { return len(h.running()) == 4 })
		w.settles(h)
		if n := len(h.running()); n != 4 {
			w.t.Errorf("%d run at once, want 4", n)
		}
	})
}

func TestTimeoutsShrinkALaneToOneInFlightUntilItSucceeds(t *testing.T) {
	each(t, func(w *world) {
		w.publishMany("a", 60)
		h := newHands()
		start(w.t, w.store, configured("w"), h.handle)
		for range 4 {
			w.await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], done)
		}
		w.await("four run", func() bool { return len(h.running()) == 4 })
		for _, sequence := range h.running() {
			h.end(sequence, verdictOf(failure.Transient, failure.Throttled, outbox.Retry, time.Hour))
		}
		w.await("one runs", func() bool { return len(h.running()) == 1 })
		w.settles(h)
		if n := len(h.running()); n != 1 {
			w.t.Fatalf("%d run although the last calls were throttled", n)
		}
		for range 8 {
			w.await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], done)
		}
		w.await("four run", func() bool { return len(h.running()) == 4 })
	})
}

func TestSlowLanesTogetherHoldAtMostHalfOfTheSlots(t *testing.T) {
	each(t, func(w *world) {
		const lanes = 6
		service := func(i int) string { return "slow " + strconv.Itoa(i) }
		for i := range lanes {
			w.publishMany(service(i), 10)
		}
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = 4, 4 }), h.handle)
		slow := verdictOf(failure.Transient, failure.Timeout, outbox.Retry, time.Hour)
		seen := map[string]bool{}
		w.await("all lanes have timed out", func() bool {
			for _, sequence := range h.running() {
				if d := h.delivery(sequence); d != nil && !seen[d.Event.ServiceID] {
					seen[d.Event.ServiceID] = true
				}
				h.end(sequence, slow)
			}
			return one[int](w, `SELECT count(DISTINCT lane_id) FROM {outbox} WHERE state = 'retryable'`) == lanes
		})
		// Events that began before their lane was known to be slow end, too.
		w.settles(h)
		for _, sequence := range h.running() {
			h.end(sequence, slow)
		}
		w.settles(h)
		if n := len(h.running()); n > 2 {
			w.t.Fatalf("slow lanes hold %d of 4 slots", n)
		}
		healthy := w.publishMany("healthy", 3)
		w.await("the healthy one's run", func() bool { return h.runningOf("healthy") == 2 })
		w.await("the healthy ones end", func() bool {
			for _, sequence := range healthy {
				h.end(sequence, done)
			}
			return w.finished() == len(healthy)
		})
		// A slot that one slow lane gives up goes to another, until all is done.
		w.ends("all end", h, done, func() bool {
			w.exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE next_attempt_at IS NOT NULL`)
			return w.finished() == lanes*10+len(healthy)
		})
	})
}

// Whatever ends an attempt in a slow lane gives its slot back.
func TestASlowLaneGivesItsSlotsBack(t *testing.T) {
	each(t, func(w *world) {
		for name, verdict := range map[string]outbox.Verdict{
			"interrupted":     verdictOf(failure.Interrupted, failure.Canceled, outbox.Yield, 0),
			"deferred behind": {Kind: outbox.Defer, Behind: []string{"m:nobody"}},
			"retried":         retryIn(0),
			"slow again":      verdictOf(failure.Transient, failure.Timeout, outbox.Retry, 0),
		} {
			event := w.publish(name, touch("a"))[0]
			h := newHands()
			worker := start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency = 2 }), h.handle)
			w.await("it runs", func() bool { return h.runs(event) })
			h.end(event, verdictOf(failure.Transient, failure.Timeout, outbox.Retry, 0))
			for range 4 {
				w.await("it runs again", func() bool { return h.runs(event) })
				h.end(event, verdict)
			}
			w.await("it runs at last", func() bool { return h.runs(event) })
			h.end(event, done)
			w.await("it ends", func() bool { return w.state(event) == "completed done" })
			if err := worker.stop(); err != nil {
				w.t.Error(err)
			}
		}
	})
}

func TestOneSlotIsEnoughForASlowLane(t *testing.T) {
	each(t, func(w *world) {
		w.publishMany("a", 3)
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = 1, 1 }), h.handle)
		w.await("one runs", func() bool { return len(h.running()) > 0 })
		h.end(h.running()[0], verdictOf(failure.Transient, failure.Timeout, outbox.Retry, time.Hour))
		w.ends("the others end", h, done, func() bool { return w.finished() == 2 })
	})
}

func TestAHungLaneDelaysNoOther(t *testing.T) {
	each(t, func(w *world) {
		// Many media of one customer hang; what waits behind them shares theirs.
		for i := range 4 {
			for range 30 {
				w.publish("hung", touch(strconv.Itoa(i)))
			}
		}
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = 6, 4 }), h.handle)
		w.await("it hangs", func() bool { return h.runningOf("hung") == 2 })
		for i := range 12 {
			w.publishMany("s"+strconv.Itoa(i), 3)
		}
		w.await("the others end", func() bool {
			for _, sequence := range h.running() {
				if d := h.delivery(sequence); d != nil && d.Event.ServiceID != "hung" {
					h.end(sequence, done)
				}
			}
			return w.finished() == 36
		})
		if n := h.runningOf("hung"); n != 2 {
			w.t.Errorf("%d of the hung lane run", n)
		}
	})
}

// Slots are free, but what the lanes have waits for what runs in them: the
// worker must look for other lanes.
func TestLanesWhoseEventsWaitForEachOtherDelayNoOther(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = 8, 8 }), h.handle)
		services := []string{"a", "b", "c"}
		for _, service := range services {
			w.publishMany(service, 12)
		}
		w.ends("they have become fast", h, done, func() bool { return w.finished() == 36 })
		for _, service := range services {
			chain := make([]events.Event, 20)
			for i := range chain {
				chain[i] = touch("a")
			}
			w.publish(service, chain...)
		}
		w.await("one of each runs", func() bool { return len(h.running()) == 3 })
		w.settles(h)
		other := w.publish("other", touch("a"))[0]
		w.await("the other runs", func() bool { return slices.Contains(h.running(), other) })
	})
}

func TestMediaGoOnBesideALongEventHoweverManyWaitBehindIt(t *testing.T) {
	each(t, func(w *world) {
		long := w.publish("s", touch("a"))[0]
		var behind []int64
		for range 60 {
			behind = append(behind, w.publish("s", touch("a"))...)
		}
		others := w.publishMany("s", 5)
		h := newHands()
		start(w.t, w.store, configured("w"), h.handle)
		w.await("the others end", func() bool {
			for _, sequence := range others {
				h.end(sequence, done)
			}
			return w.finished() == len(others)
		})
		if !h.runs(long) {
			w.t.Errorf("%v run, want %d alone", h.running(), long)
		}
		w.ends("the chain ends", h, done, func() bool { return w.finished() == 66 })
		chain := slices.DeleteFunc(w.effects(), func(s int64) bool { return slices.Contains(others, s) })
		if diff := cmp.Diff(append([]int64{long}, behind...), chain); diff != "" {
			w.t.Error(diff)
		}
	})
}

// A lane with a long event can't be given back for those that wait: its other
// media must go on all the same.
func TestALaneWithALongEventGoesOnWhileOthersWait(t *testing.T) {
	each(t, func(w *world) {
		long := w.publish("s", touch("long"))[0]
		h := newHands()
		start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Concurrency, c.LaneConcurrency = 2, 2 }), h.handle)
		w.await("it runs", func() bool { return h.runs(long) })
		var mine []int64
		publishing := func() {
			mine = append(mine, w.publishMany("s", 20)...)
			for i := range 8 {
				w.publishMany("other "+strconv.Itoa(i), 20)
			}
		}
		publishing()
		began, counted := time.Now(), 0
		w.await("its other media go on after seconds", func() bool {
			for _, sequence := range h.running() {
				if sequence != long {
					h.end(sequence, done)
				}
			}
			if time.Since(began) < 3*time.Second {
				if w.finished() > counted+100 {
					publishing()
					counted = w.finished()
				}
				return false
			}
			return one[int](w, `SELECT count(*) FROM {outbox} e JOIN {lanes} l ON l.lane_id = e.lane_id
				WHERE l.service_id = 's' AND e.state = 'completed'`) == len(mine)
		})
	})
}
