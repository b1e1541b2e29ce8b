package outbox_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// unfinished is the event of a media that a later one would wait for.
func (w *world) unfinished(laneID int64, media string, before int64) int64 {
	w.t.Helper()
	found, err := w.store.Unfinished(w.t.Context(), laneID, media, before)
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// No worker has written these events: their payloads tell their media.
func TestAnUnreadEventCountsAsUnfinishedForItsMedia(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"))
		w.publishIn("s", "dev", touch("c"))
		lane := w.claimOneOf("s", "").LaneID
		for _, c := range []struct {
			media  string
			before int64
			want   int64
		}{
			{"a", math.MaxInt64, list[0]},
			{"b", math.MaxInt64, list[1]},
			{"b", list[1], 0},
			{"c", math.MaxInt64, 0},
		} {
			if got := w.unfinished(lane, c.media, c.before); got != c.want {
				w.t.Errorf("of media %s before %d: %d, want %d", c.media, c.before, got, c.want)
			}
		}
	})
}

func TestWhatIsParkedOrRetriedCountsAsUnfinishedAndWhatIsDeadDoesNot(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("retried"), touch("dead"), touch("behind", "of retried"))
		lane := w.claimOne("w")
		behind := w.event(lane.LaneID, list[2])
		w.settle(lane, list[0], retryIn(time.Hour))
		w.settle(lane, list[1], outbox.Verdict{Kind: outbox.Die, Failure: ruined})
		if parked := w.park(lane, nil, behind); len(parked) != 1 {
			w.t.Fatalf("parked %v", parked)
		}
		got := map[string]int64{}
		for _, media := range []string{"retried", "dead", "behind"} {
			got[media] = w.unfinished(lane.LaneID, media, math.MaxInt64)
		}
		if diff := cmp.Diff(map[string]int64{"retried": list[0], "dead": 0, "behind": list[2]}, got); diff != "" {
			w.t.Error(diff)
		}
	})
}

// Reading payloads has its bound: beyond it the answer is an event that may be of
// the media, and the caller asks again later.
func TestAMediaCountsAsUnfinishedBehindMoreThanIsRead(t *testing.T) {
	each(t, func(w *world) {
		list := w.publishMany("s", outbox.Unread)
		lane := w.claimOne("w")
		if got := w.unfinished(lane.LaneID, "other", math.MaxInt64); got == 0 {
			w.t.Error("it is taken for certain that none is of the media")
		}
		w.settle(lane, list[0], done)
		if got := w.unfinished(lane.LaneID, "other", math.MaxInt64); got != 0 {
			w.t.Errorf("event %d isn't of the media", got)
		}
	})
}

// A snapshot must see what no worker has written, and what is parked.
func TestASnapshotFindsEachUnfinishedEventBeforeIt(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"), touch("a"), touch("c"), touch("d"))
		lane := w.claimOne("w")
		third := w.event(lane.LaneID, list[2])
		w.settle(lane, list[0], retryIn(time.Hour))
		w.park(lane, nil, third)
		w.settle(lane, list[1], done)
		for _, c := range []struct {
			after, before int64
			most          int
			want          []int64
		}{
			{0, list[4], 9, []int64{list[0], list[2], list[3]}},
			{list[0], list[4], 9, []int64{list[2], list[3]}},
			{0, list[4], 2, []int64{list[0], list[2]}},
		} {
			found, err := w.store.UnfinishedBetween(w.t.Context(), w.db, lane.LaneID, c.after, c.before, c.most)
			if err != nil {
				w.t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, sequences(found)); diff != "" {
				w.t.Errorf("between %d and %d, at most %d: %s", c.after, c.before, c.most, diff)
			}
		}
	})
}
