package outbox_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// unfinished is the event of a media that a later one would wait for.
func (w *world) unfinished(laneID int64, media string, before int64) int64 {
	w.T.Helper()
	found, err := w.Store.Unfinished(w.T.Context(), laneID, media, before)
	if err != nil {
		w.T.Fatal(err)
	}
	return found
}

// No worker has written these events: their payloads tell their media.
func TestAnUnreadEventCountsAsUnfinishedForItsMedia(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		w.PublishIn("s", "dev", outboxtest.Touch("c"))
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
				w.T.Errorf("of media %s before %d: %d, want %d", c.media, c.before, got, c.want)
			}
		}
	})
}

func TestWhatIsParkedOrRetriedCountsAsUnfinishedAndWhatIsDeadDoesNot(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("retried"), outboxtest.Touch("dead"), outboxtest.Touch("behind", "of retried"))
		lane := w.ClaimOne("w")
		behind := w.Event(lane.LaneID, list[2])
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Settle(lane, list[1], outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined})
		if parked := w.Park(lane, nil, behind); len(parked) != 1 {
			w.T.Fatalf("parked %v", parked)
		}
		got := map[string]int64{}
		for _, media := range []string{"retried", "dead", "behind"} {
			got[media] = w.unfinished(lane.LaneID, media, math.MaxInt64)
		}
		if diff := cmp.Diff(map[string]int64{"retried": list[0], "dead": 0, "behind": list[2]}, got); diff != "" {
			w.T.Error(diff)
		}
	})
}

// Reading payloads has its bound: beyond it the answer is an event that may be of
// the media, and the caller asks again later.
func TestAMediaCountsAsUnfinishedBehindMoreThanIsRead(t *testing.T) {
	each(t, func(w *world) {
		list := w.PublishMany("s", outbox.Unread)
		lane := w.ClaimOne("w")
		if got := w.unfinished(lane.LaneID, "other", math.MaxInt64); got == 0 {
			w.T.Error("it is taken for certain that none is of the media")
		}
		w.Settle(lane, list[0], outboxtest.Done)
		if got := w.unfinished(lane.LaneID, "other", math.MaxInt64); got != 0 {
			w.T.Errorf("event %d isn't of the media", got)
		}
	})
}

// A snapshot must see what no worker has written, and what is parked.
func TestASnapshotFindsEachUnfinishedEventBeforeIt(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("a"), outboxtest.Touch("c"), outboxtest.Touch("d"))
		lane := w.ClaimOne("w")
		third := w.Event(lane.LaneID, list[2])
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Park(lane, nil, third)
		w.Settle(lane, list[1], outboxtest.Done)
		for _, c := range []struct {
			after, before int64
			most          int
			want          []int64
		}{
			{0, list[4], 9, []int64{list[0], list[2], list[3]}},
			{list[0], list[4], 9, []int64{list[2], list[3]}},
			{0, list[4], 2, []int64{list[0], list[2]}},
		} {
			found, err := w.Store.UnfinishedBetween(w.T.Context(), w.DB, lane.LaneID, c.after, c.before, c.most)
			if err != nil {
				w.T.Fatal(err)
			}
			if diff := cmp.Diff(c.want, outboxtest.Sequences(found)); diff != "" {
				w.T.Errorf("between %d and %d, at most %d: %s", c.after, c.before, c.most, diff)
			}
		}
	})
}
