package subscriber_test

import (
	"strconv"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// Integrations that are busy with all that they may have hang from one moment
// to the next. Until their calls time out nothing tells that they are slow:
// there must be slots for others all the same.
func TestLanesThatBeginToHangDelayNoOther(t *testing.T) {
	each(t, func(w *world) {
		const busy = 4
		for i := range busy {
			w.PublishMany("busy "+strconv.Itoa(i), 100)
		}
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 20, 6 }), h.handle)
		w.ends("all have become fast", h, outboxtest.Done, func() bool {
			return outboxtest.One[int](w.World, `SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE state = 'completed'
				GROUP BY lane_id HAVING count(*) >= 10) AS fast`) == busy
		})
		w.settles(h) // from now on nothing of theirs is answered
		w.PublishMany("healthy", 3)
		w.Await("the healthy one's run", func() bool { return h.runningOf("healthy") == 2 })
	})
}

// A lane that has plenty in memory doesn't need the rest soon: others' events
// are found before all of it was read.
func TestWhatIsNotNeededYetHidesNothing(t *testing.T) {
	each(t, func(w *world) {
		const waiting = 3000
		w.PublishMany("hangs", waiting)
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency, c.LaneConcurrency = 100, 2 }), h.handle)
		w.Await("calls that hang", func() bool { return h.runningOf("hangs") == 2 })
		w.Publish("healthy", outboxtest.Touch("a"))
		w.Await("the healthy one's run", func() bool { return h.runningOf("healthy") == 1 })
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE lane_id IS NOT NULL`); n >= waiting {
			w.T.Errorf("%d events were written first", n)
		}
	})
}

// Events that wait for their sources have all slots before anything tells so.
// Then they count as slow while they run, until they no longer wait.
func TestEventsThatWaitLeaveSlotsToOthers(t *testing.T) {
	each(t, func(w *world) {
		const lanes, slots = 4, 8
		for i := range lanes {
			w.PublishMany("waits "+strconv.Itoa(i), 3)
		}
		h := newHands()
		start(w.T, w.Store, configured("w", func(c *subscriber.Config) { c.Concurrency = slots }), h.handle)
		w.Await("all slots", func() bool { return len(h.running()) == slots })
		w.PublishMany("healthy", 2)

		slow := verdictOf(failure.Transient, failure.SourceSlow, outbox.Retry, 0)
		var counted []*outbox.Delivery
		for _, sequence := range h.running() {
			d := h.delivery(sequence)
			if !d.Slow(true) {
				h.end(sequence, slow)
				continue
			}
			counted = append(counted, d)
		}
		if len(counted) != slots/2 {
			w.T.Fatalf("%d may go on", len(counted))
		}
		w.Await("the healthy one's run", func() bool { return h.runningOf("healthy") == 2 })
		w.settles(h)
		if n := len(h.running()); n != slots/2+2 {
			w.T.Errorf("%d run: those that are to be tried again are slow, too", n)
		}

		// Who no longer waits leaves the place to one of those, once.
		for range 2 {
			counted[0].Slow(false)
		}
		w.Await("another slow one's run", func() bool { return len(h.running()) == slots/2+3 })
		w.settles(h)
		if n := len(h.running()); n != slots/2+3 {
			w.T.Errorf("%d run", n)
		}
		if counted[0].Slow(true) {
			w.T.Error("it may wait beyond their share")
		}

		// An end leaves the place once, whatever its source tells afterwards.
		started := h.startedCount()
		h.end(counted[1].Event.Sequence, slow)
		w.Await("a slow one's run in its place", func() bool { return h.startedCount() == started+1 })
		counted[1].Slow(false)
		counted[1].Slow(true)
		counted[1].Slow(false)
		w.settles(h)
		if n := len(h.running()); n != slots/2+3 {
			w.T.Errorf("%d run after one of them ended", n)
		}
	})
}
