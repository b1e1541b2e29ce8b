package subscriber_test

import (
	"strconv"
	"testing"

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
