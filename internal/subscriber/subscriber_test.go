package subscriber_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

func verdictOf(class failure.Class, code string, kind outbox.Kind, delay time.Duration) outbox.Verdict {
	return outbox.Verdict{Kind: kind, Delay: delay, Failure: failure.New(class, code, "%s", code)}
}

func TestNeverMoreInFlightThanTheLimits(t *testing.T) {
	each(t, func(w *world) {
		const workers, lane = 6, 4
		w.PublishMany("a", 40)
		w.PublishMany("b", 40)
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = workers, lane }), h.handle)
		most := map[string]int{}
		w.Await("all have ended", func() bool {
			for _, service := range []string{"a", "b"} {
				most[service] = max(most[service], h.runningOf(service))
			}
			if running := h.running(); len(running) > 0 {
				h.end(running[0], outboxtest.Done)
			}
			return w.finished() == 80
		})
		if h.most > workers || most["a"] > lane || most["b"] > lane {
			w.T.Errorf("%d ran at once, at most %v of one integration; the limits are %d and %d", h.most, most, workers, lane)
		}
	})
}

// An operator replays more events than are read at once, be it that they are many or
// that they are large. They come before what was published since.
func TestReplayedEventsRunBeforeWhatWasPublishedSince(t *testing.T) {
	each(t, func(w *world) { replayMany(w) })
	t.Run("large", func(t *testing.T) {
		each(t, func(w *world) {
			w.Store.MaxReading = 1 // each is larger than a reading
			replayMany(w)
		})
	})
}

// A payload above the limit takes nothing of a reading, so that its event is found
// where those before it are left for the next one.
func TestAnEventAboveTheLimitPassesNoOtherBy(t *testing.T) {
	each(t, func(w *world) {
		w.Store.MaxReading = 1 // each is larger than a reading
		for n := range 5 {
			w.Publish("s", outboxtest.Touch(fmt.Sprint("m", n)))
			w.InsertRaw(w.DB, "s", "", events.MediaDeletedType, `{"more": "`+strings.Repeat("x", outbox.MaxEventSize)+`"}`)
		}
		start(w.T, w.Store, configured("w"), refusing)
		w.Await("all to end", func() bool { return w.finished() == 10 })
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE outcome = 'done'`); n != 5 {
			w.T.Errorf("%d were done, want 5", n)
		}
	})
}

func replayMany(w *world) {
	var list []events.Event
	for n := range 100 {
		list = append(list, outboxtest.Touch(fmt.Sprint("m", n)))
	}
	dead := w.Publish("s", list...)
	var mu sync.Mutex
	var mended bool
	var started []int64
	start(w.T, w.Store, configured("w"), func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if !mended {
			return &outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined}
		}
		started = append(started, d.Event.Sequence)
		return &outboxtest.Done
	})
	w.Await("all to be dead", func() bool { return w.finished() == len(dead) })
	mu.Lock()
	mended = true
	mu.Unlock()
	if _, err := w.Store.Retry(w.T.Context(), outbox.Filter{ServiceID: "s"}, outbox.Action{Actor: "operator", Reason: "mended"}); err != nil {
		w.T.Fatal(err)
	}
	last := dead[len(dead)-1]
	later := w.Publish("s", outboxtest.Touch("m99"))[0]
	w.Await("all to be done", func() bool { return w.finished() == len(dead)+1 })
	mu.Lock()
	defer mu.Unlock()
	if slices.Index(started, later) < slices.Index(started, last) {
		w.T.Errorf("%d started before %d, of the same media", later, last)
	}
}

func TestALaneUsesAllThatItMay(t *testing.T) {
	each(t, func(w *world) {
		w.PublishMany("a", 60)
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		w.Await("two run at first", func() bool { return len(h.running()) == 2 })
		for range 4 {
			w.Await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], outboxtest.Done)
		}
		w.Await("four run after successes", func() bool { return len(h.running()) == 4 })
		w.settles(h)
		if n := len(h.running()); n != 4 {
			w.T.Errorf("%d run at once, want 4", n)
		}
	})
}

func TestTimeoutsShrinkALaneToOneInFlightUntilItSucceeds(t *testing.T) {
	each(t, func(w *world) {
		w.PublishMany("a", 60)
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		for range 4 {
			w.Await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], outboxtest.Done)
		}
		w.Await("four run", func() bool { return len(h.running()) == 4 })
		for _, sequence := range h.running() {
			h.end(sequence, verdictOf(failure.Transient, failure.Throttled, outbox.Retry, time.Hour))
		}
		w.Await("one runs", func() bool { return len(h.running()) == 1 })
		w.settles(h)
		if n := len(h.running()); n != 1 {
			w.T.Fatalf("%d run although the last calls were throttled", n)
		}
		for range 8 {
			w.Await("one runs", func() bool { return len(h.running()) > 0 })
			h.end(h.running()[0], outboxtest.Done)
		}
		w.Await("four run", func() bool { return len(h.running()) == 4 })
	})
}

func TestSlowLanesTogetherHoldAtMostHalfOfTheSlots(t *testing.T) {
	each(t, func(w *world) {
		const lanes = 6
		service := func(i int) string { return "slow " + strconv.Itoa(i) }
		for i := range lanes {
			w.PublishMany(service(i), 10)
		}
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 4, 4 }), h.handle)
		slow := verdictOf(failure.Transient, failure.Timeout, outbox.Retry, time.Hour)
		seen := map[string]bool{}
		w.Await("all lanes have timed out", func() bool {
			for _, sequence := range h.running() {
				if d := h.delivery(sequence); d != nil && !seen[d.Event.ServiceID] {
					seen[d.Event.ServiceID] = true
				}
				h.end(sequence, slow)
			}
			return outboxtest.One[int](w.World, `SELECT count(DISTINCT lane_id) FROM {outbox} WHERE state = 'retryable'`) == lanes
		})
		// Events that began before their lane was known to be slow end, too.
		w.settles(h)
		for _, sequence := range h.running() {
			h.end(sequence, slow)
		}
		w.settles(h)
		if n := len(h.running()); n > 2 {
			w.T.Fatalf("slow lanes hold %d of 4 slots", n)
		}
		healthy := w.PublishMany("healthy", 3)
		w.Await("the healthy one's run", func() bool { return h.runningOf("healthy") == 2 })
		w.Await("the healthy ones end", func() bool {
			for _, sequence := range healthy {
				h.end(sequence, outboxtest.Done)
			}
			return w.finished() == len(healthy)
		})
		// A slot that one slow lane gives up goes to another, until all is done.
		w.ends("all end", h, outboxtest.Done, func() bool {
			w.Exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE next_attempt_at IS NOT NULL`)
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
			"retried":         outboxtest.RetryIn(0),
			"slow again":      verdictOf(failure.Transient, failure.Timeout, outbox.Retry, 0),
		} {
			event := w.Publish(name, outboxtest.Touch("a"))[0]
			h := newHands()
			worker := start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency = 2 }), h.handle)
			w.Await("it runs", func() bool { return h.runs(event) })
			h.end(event, verdictOf(failure.Transient, failure.Timeout, outbox.Retry, 0))
			for range 4 {
				w.Await("it runs again", func() bool { return h.runs(event) })
				h.end(event, verdict)
			}
			w.Await("it runs at last", func() bool { return h.runs(event) })
			h.end(event, outboxtest.Done)
			w.Await("it ends", func() bool { return w.State(event) == "completed done" })
			if err := worker.stop(); err != nil {
				w.T.Error(err)
			}
		}
	})
}

func TestOneSlotIsEnoughForASlowLane(t *testing.T) {
	each(t, func(w *world) {
		w.PublishMany("a", 3)
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 1, 1 }), h.handle)
		w.Await("one runs", func() bool { return len(h.running()) > 0 })
		h.end(h.running()[0], verdictOf(failure.Transient, failure.Timeout, outbox.Retry, time.Hour))
		w.ends("the others end", h, outboxtest.Done, func() bool { return w.finished() == 2 })
	})
}

func TestAHungLaneDelaysNoOther(t *testing.T) {
	each(t, func(w *world) {
		// Many media of one customer hang; what waits behind them shares theirs.
		for i := range 4 {
			for range 30 {
				w.Publish("hung", outboxtest.Touch(strconv.Itoa(i)))
			}
		}
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 6, 4 }), h.handle)
		w.Await("it hangs", func() bool { return h.runningOf("hung") == 2 })
		for i := range 12 {
			w.PublishMany("s"+strconv.Itoa(i), 3)
		}
		w.Await("the others end", func() bool {
			for _, sequence := range h.running() {
				if d := h.delivery(sequence); d != nil && d.Event.ServiceID != "hung" {
					h.end(sequence, outboxtest.Done)
				}
			}
			return w.finished() == 36
		})
		if n := h.runningOf("hung"); n != 2 {
			w.T.Errorf("%d of the hung lane run", n)
		}
	})
}

// Slots are free, but what the lanes have waits for what runs in them: the
// worker must look for other lanes.
func TestLanesWhoseEventsWaitForEachOtherDelayNoOther(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 8, 8 }), h.handle)
		services := []string{"a", "b", "c"}
		for _, service := range services {
			w.PublishMany(service, 12)
		}
		w.ends("they have become fast", h, outboxtest.Done, func() bool { return w.finished() == 36 })
		for _, service := range services {
			chain := make([]events.Event, 20)
			for i := range chain {
				chain[i] = outboxtest.Touch("a")
			}
			w.Publish(service, chain...)
		}
		w.Await("one of each runs", func() bool { return len(h.running()) == 3 })
		w.settles(h)
		other := w.Publish("other", outboxtest.Touch("a"))[0]
		w.Await("the other runs", func() bool { return slices.Contains(h.running(), other) })
	})
}

func TestMediaGoOnBesideALongEventHoweverManyWaitBehindIt(t *testing.T) {
	each(t, func(w *world) {
		long := w.Publish("s", outboxtest.Touch("a"))[0]
		var behind []int64
		for range 60 {
			behind = append(behind, w.Publish("s", outboxtest.Touch("a"))...)
		}
		others := w.PublishMany("s", 5)
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		w.Await("the others end", func() bool {
			for _, sequence := range others {
				h.end(sequence, outboxtest.Done)
			}
			return w.finished() == len(others)
		})
		if !h.runs(long) {
			w.T.Errorf("%v run, want %d alone", h.running(), long)
		}
		w.ends("the chain ends", h, outboxtest.Done, func() bool { return w.finished() == 66 })
		chain := slices.DeleteFunc(w.Effects(), func(s int64) bool { return slices.Contains(others, s) })
		if diff := cmp.Diff(append([]int64{long}, behind...), chain); diff != "" {
			w.T.Error(diff)
		}
	})
}

// A lane with a long event can't be given back for those that wait: its other
// media must go on all the same.
func TestALaneWithALongEventGoesOnWhileOthersWait(t *testing.T) {
	each(t, func(w *world) {
		long := w.Publish("s", outboxtest.Touch("long"))[0]
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 2, 2 }), h.handle)
		w.Await("it runs", func() bool { return h.runs(long) })
		var mine []int64
		publishing := func() {
			mine = append(mine, w.PublishMany("s", 20)...)
			for i := range 8 {
				w.PublishMany("other "+strconv.Itoa(i), 20)
			}
		}
		publishing()
		began, counted := time.Now(), 0
		w.Await("its other media go on after seconds", func() bool {
			for _, sequence := range h.running() {
				if sequence != long {
					h.end(sequence, outboxtest.Done)
				}
			}
			if time.Since(began) < 3*time.Second {
				if w.finished() > counted+100 {
					publishing()
					counted = w.finished()
				}
				return false
			}
			return outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} e JOIN {lanes} l ON l.lane_id = e.lane_id
				WHERE l.service_id = 's' AND e.state = 'completed'`) == len(mine)
		})
	})
}
