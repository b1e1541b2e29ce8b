package subscriber_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

func TestAPausedLaneStopsAndIsGivenBack(t *testing.T) {
	each(t, func(w *world) {
		w.PublishMany("s", 20)
		h := newHands()
		worker := start(w.T, w.Store, configured("w"), h.handle)
		w.Await("two run", func() bool { return len(h.running()) == 2 })
		w.Exec(`UPDATE {lanes} SET held = true`)
		w.Await("the worker has seen it", func() bool { return worker.KnowsHeld(1) })
		started := h.startedCount()
		w.ends("the lane is given back", h, outboxtest.Done, func() bool {
			return outboxtest.One[int](w.World, `SELECT count(*) FROM {lanes} WHERE leased_by IS NULL`) == 1
		})
		if n := h.startedCount(); n != started {
			w.T.Errorf("%d events began in a paused lane", n-started)
		}
		w.Exec(`UPDATE {lanes} SET held = false, wake = wake + 1, ready_at = coalesce(ready_at, 1)`)
		w.ends("all end", h, outboxtest.Done, func() bool { return w.finished() == 20 })
	})
}

// An event that was put back keeps its place before those that come after it.
func TestAnEventThatYieldsIsNotOvertaken(t *testing.T) {
	each(t, func(w *world) {
		for name, verdict := range map[string]outbox.Verdict{
			"interrupted":                   verdictOf(failure.Interrupted, failure.Canceled, outbox.Yield, 0),
			"interrupted while it wrote":    verdictOf(failure.Interrupted, failure.Canceled, outbox.Yield, time.Microsecond),
			"deferred behind another media": {Kind: outbox.Defer, Behind: []string{"m:nobody"}},
			"retried at once":               outboxtest.RetryIn(0),
			"deferred":                      {Kind: outbox.Defer},
		} {
			h := newHands()
			worker := start(w.T, w.Store, configured("w"), h.handle)
			var list []int64
			for range 6 {
				list = append(list, w.Publish(name, outboxtest.Touch("a"))...)
			}
			before := len(w.Effects())
			for _, sequence := range list {
				for range 2 {
					w.Await("the first runs", func() bool { return h.runs(sequence) })
					h.end(sequence, verdict)
				}
				w.Await("the first runs again", func() bool { return h.runs(sequence) })
				h.end(sequence, outboxtest.Done)
			}
			w.Await("all end", func() bool { return len(w.Effects()) == before+len(list) })
			if diff := cmp.Diff(list, w.Effects()[before:]); diff != "" {
				w.T.Errorf("%s: %s", name, diff)
			}
			if err := worker.stop(); err != nil {
				w.T.Error(err)
			}
		}
	})
}

func TestAnAcknowledgementWithoutAVerdictIsAnInterruption(t *testing.T) {
	each(t, func(w *world) {
		event := w.Publish("s", outboxtest.Touch("a"))[0]
		attempts := make(chan int, 100)
		start(w.T, w.Store, configured("w"), func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			attempts <- d.Event.RecordedCount
			if d.Event.RecordedCount == 0 {
				return nil
			}
			if !d.MayHaveRun {
				w.T.Error("the second attempt doesn't know of the first")
			}
			return &outboxtest.Done
		})
		w.Await("it completes", func() bool { return w.State(event) == "completed done" })
		if first, second := <-attempts, <-attempts; first != 0 || second != 1 || len(attempts) > 0 {
			w.T.Errorf("attempts %d, %d and %d more", first, second, len(attempts))
		}
		if n := outboxtest.One[int](w.World, `SELECT attempt_count FROM {outbox}`); n != 1 {
			w.T.Errorf("%d attempts count", n)
		}
	})
}

func TestDrainingLetsRunningEventsFinishAndGivesLeasesBack(t *testing.T) {
	each(t, func(w *world) {
		list := w.PublishMany("s", 20)
		h := newHands()
		worker := start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Grace = time.Minute }), h.handle)
		w.Await("two run", func() bool { return len(h.running()) == 2 })
		worker.cancel()
		w.settles(h)
		if n := h.startedCount(); n != 2 {
			w.T.Errorf("%d events began", n)
		}
		for _, sequence := range h.running() {
			h.end(sequence, outboxtest.Done)
		}
		if err := worker.stop(); err != nil {
			w.T.Fatal(err)
		}
		if n := w.finished(); n != 2 {
			w.T.Errorf("%d events finished", n)
		}
		lanes := w.Claim("next")
		if len(lanes) != 1 || lanes[0].LapseCount != 0 {
			w.T.Fatalf("the next worker claims %v", lanes)
		}
		if diff := cmp.Diff(list[2:], outboxtest.Sequences(w.ReadAfter(lanes[0].LaneID, lanes[0].ReadFrom))); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestWhatTheGracePeriodCutsOffLosesNoAttempt(t *testing.T) {
	each(t, func(w *world) {
		event := w.Publish("s", outboxtest.Touch("a"))[0]
		h := newHands()
		worker := start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Grace = time.Millisecond }), h.handle)
		w.Await("it runs", func() bool { return h.runs(event) })
		if err := worker.stop(); err != nil {
			w.T.Fatal(err)
		}
		type row struct {
			State    string `db:"state"`
			Attempts int    `db:"attempt_count"`
			Recorded int    `db:"recorded_count"`
			Class    string `db:"error_class"`
		}
		var got row
		if err := w.DB.GetContext(w.T.Context(), &got, w.DB.SQL(`SELECT state, attempt_count, recorded_count, error_class
			FROM {outbox}`)); err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(row{"available", 0, 1, "interrupted"}, got); diff != "" {
			w.T.Error(diff)
		}
		// Nobody has to wait for a lease to lapse, nor for a wake-up.
		start(w.T, w.Store, configured("next"), func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			if !d.MayHaveRun {
				w.T.Error("the next attempt doesn't know of the interrupted one")
			}
			return &outboxtest.Done
		})
		w.Await("the next worker completes it", func() bool { return w.State(event) == "completed done" })
	})
}

func TestAnEventThatLapsedTenTimesRunsAlone(t *testing.T) {
	each(t, func(w *world) {
		before := w.PublishMany("a", 2)
		poison := w.Publish("b", outboxtest.Touch("poison"))[0]
		w.Want()
		w.Exec(`UPDATE {outbox} SET lapse_count = 10 WHERE sequence = ?`, poison)
		h := newHands()
		start(w.T, w.Store, configured("w"), h.handle)
		w.Await("what runs already goes on", func() bool { return len(h.running()) > 0 })
		w.ends("those before it end", h, outboxtest.Done, func() bool { return h.runs(poison) && w.finished() == len(before) || w.finished() == 3 })
		if w.finished() == 3 {
			return // it ran first, and alone
		}
		w.PublishMany("a", 5)
		w.settles(h)
		if running := h.running(); !slices.Equal(running, []int64{poison}) {
			w.T.Errorf("%v run, want %d alone", running, poison)
		}
		h.end(poison, outboxtest.Done)
		w.ends("all end", h, outboxtest.Done, func() bool { return w.finished() == 8 })
		if h.most > 4 {
			w.T.Errorf("%d ran at once", h.most)
		}
	})
}

// An event whose end can't be written is its own trouble.
func TestARefusedSettlementFailsItsEventAlone(t *testing.T) {
	each(t, func(w *world) {
		var bad int64
		store := outbox.New(w.DB, &outboxtest.Recorder{DB: w.DB, Refuse: func(st *outbox.Settlement) error {
			if st.Event.Sequence == bad && st.Kind == outbox.Complete {
				return failure.New(failure.Transient, failure.Internal, "a unique key is taken")
			}
			return nil
		}})
		list := w.PublishMany("s", 8)
		others := w.PublishMany("t", 8)
		bad = list[3]
		start(w.T, store, configured("w"), func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done })
		w.Await("all end", func() bool { return w.finished() == len(list)+len(others) })
		if got := w.State(bad); got != "dead internal" {
			w.T.Errorf("it is %s", got)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE state = 'completed'`); n != 15 {
			w.T.Errorf("%d others completed", n)
		}
	})
}

// Where not even its failure can be written, its lane alone is left to lapse,
// and nothing of it is forgotten.
func TestWhatCanNotBeSettledAtAllCostsItsLaneAlone(t *testing.T) {
	each(t, func(w *world) {
		var refusing = make(chan struct{})
		var bad int64
		store := outbox.New(w.DB, &outboxtest.Recorder{DB: w.DB, Refuse: func(st *outbox.Settlement) error {
			select {
			case <-refusing:
				return nil
			default:
			}
			if st.Event.Sequence == bad {
				return failure.New(failure.Transient, failure.Internal, "no")
			}
			return nil
		}})
		list := w.PublishMany("s", 4)
		w.PublishMany("t", 8)
		bad = list[1]
		start(w.T, store, configured("w", func(c *subscriber.Config) { c.Lease = 2 * time.Second }),
			func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done })
		w.Await("the others end", func() bool {
			return outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE service_id = 't' AND state = 'completed'`) == 8
		})
		close(refusing)
		w.Await("all end", func() bool { return w.finished() == 12 })
		if n := outboxtest.One[int](w.World, `SELECT lease_token FROM {lanes} WHERE service_id = 't'`); n > 3 {
			w.T.Errorf("the other lane was leased %d times", n)
		}
	})
}

// A lane that was given up is not renewed, even while one of its handlers is slow
// to stop: it is taken over from where its events stand.
func TestAGivenUpLaneLapses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	list := w.Publish("s", outboxtest.Touch("slow to stop"), outboxtest.Touch("b"))
	stopped := make(chan struct{})
	store := outbox.New(w.DB, &outboxtest.Recorder{DB: w.DB, Refuse: func(st *outbox.Settlement) error {
		if st.Token == 1 {
			return failure.New(failure.Transient, failure.Internal, "no")
		}
		return nil
	}})
	var attempts atomic.Int64
	start(t, store, configured("w", func(c *subscriber.Config) { c.Lease = 2 * time.Second }),
		func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			if attempts.Add(1) <= 2 && d.Event.Sequence == list[0] {
				<-stopped
			}
			return &outboxtest.Done
		})
	t.Cleanup(func() { close(stopped) }) // before the worker is stopped
	w.Await("both complete", func() bool { return w.finished() == 2 })
}

func TestASubscriberRefusesWhatItCanNotRunWith(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*subscriber.Config){
		"no name":             func(c *subscriber.Config) { c.Worker = "" },
		"no slots":            func(c *subscriber.Config) { c.Concurrency = 0 },
		"no slots for a lane": func(c *subscriber.Config) { c.LaneConcurrency = 0 },
		"too short a lease":   func(c *subscriber.Config) { c.Lease = time.Millisecond },
		"no poll":             func(c *subscriber.Config) { c.Poll = 0 },
	} {
		if _, err := subscriber.New(nil, configured("w", change)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s, err := subscriber.New(nil, configured("w"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Subscribe(t.Context(), "Nonsense"); err == nil {
		t.Error("subscribed to a type that doesn't exist")
	}
}
