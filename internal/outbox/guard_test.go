package outbox_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

var operator = outbox.Action{Actor: "operator", Reason: "mended"}

// replay lets an operator run an event again.
func (w *world) replay(sequence int64) {
	w.T.Helper()
	counts, err := w.Store.Retry(w.T.Context(), outbox.Filter{EventIDs: []string{w.idOf(sequence)}}, operator)
	if err != nil || counts.Changed != 1 {
		w.T.Fatal(counts, err)
	}
}

// The answer to a commit may be lost, so that an attempt's end comes again after an
// operator replayed the event. That attempt is over.
func TestAnEndThatComesAgainAfterAReplayChangesNothing(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.Publish("s", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("w")
		e := w.Event(lane.LaneID, sequence)
		verdict := outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined}
		w.SettleEvent(lane, e, verdict)
		w.replay(sequence)
		before := w.Dump()
		w.SettleEvent(lane, e, verdict)
		if diff := cmp.Diff(before, w.Dump()); diff != "" {
			w.T.Errorf("what changed: %s", diff)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n != 1 {
			w.T.Errorf("%d attempts are kept of one", n)
		}
		w.Settle(lane, sequence, outboxtest.Done)
		if got := w.State(sequence); got != "completed done" {
			w.T.Errorf("the replayed event is %s", got)
		}
	})
}

// An attempt whose event was settled, discarded or replayed meanwhile is over: its
// end changes nothing, and the ledger isn't told of it.
func TestAnAttemptThatIsOverWritesNothing(t *testing.T) {
	for how, meanwhile := range map[string]func(w *world, lane outbox.Lane, e *outbox.Event){
		"completed": func(w *world, lane outbox.Lane, e *outbox.Event) { w.SettleEvent(lane, e, outboxtest.Done) },
		"interrupted": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.SettleEvent(lane, e, outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		},
		"to be retried": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.SettleEvent(lane, e, outboxtest.RetryIn(time.Hour))
		},
		"replayed": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.SettleEvent(lane, e, outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined})
			w.replay(e.Sequence)
		},
		"discarded": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.SettleEvent(lane, e, outboxtest.RetryIn(time.Hour))
			if counts, err := w.Store.Discard(w.T.Context(), outbox.Filter{ServiceID: "s"}, operator); err != nil || counts.Changed != 1 {
				w.T.Fatal(counts, err)
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			each(t, func(w *world) {
				for _, verdict := range []outbox.Verdict{
					outboxtest.Done, {Kind: outbox.Die, Failure: outboxtest.Ruined}, outboxtest.RetryIn(time.Hour), {Kind: outbox.Yield, Failure: outboxtest.Trouble},
				} {
					w.Exec(`DELETE FROM {effects}`)
					w.Exec(`DELETE FROM {holds}`)
					w.Exec(`DELETE FROM {outbox}`)
					w.Exec(`DELETE FROM {lanes}`)
					sequence := w.Publish("s", outboxtest.Touch("a"))[0]
					lane := w.ClaimOne("w")
					e := w.Event(lane.LaneID, sequence)
					meanwhile(w, lane, e)
					state, before := w.State(sequence), w.Dump()
					attempts, effects := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`), w.Effects()
					seen := &outboxtest.Recorder{DB: w.DB}
					late := outboxtest.Settlement(lane, e, verdict)
					late.Started = late.Started.Add(time.Hour) // the effects are told apart by it
					if err := outbox.New(w.DB, seen).Settle(w.T.Context(), []*outbox.Settlement{late}); err != nil {
						w.T.Fatal(err)
					}
					if got := w.State(sequence); got != state {
						w.T.Errorf("a late end of kind %d makes it %s, and it was %s", verdict.Kind, got, state)
					}
					if diff := cmp.Diff(before, w.Dump()); diff != "" {
						w.T.Errorf("what a late end of kind %d changed: %s", verdict.Kind, diff)
					}
					if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n != attempts || seen.Calls.Load() > 0 || !slices.Equal(effects, w.Effects()) {
						w.T.Errorf("a late end of kind %d: %d attempts, were %d; the ledger was told %d times", verdict.Kind, n, attempts, seen.Calls.Load())
					}
				}
			})
		})
	}
}

// A worker marks what it runs from its memory. An event that was put behind another
// meanwhile keeps what orders it, and lets go of it in the end.
func TestAnEventThatWasPutBehindAnotherIsNotWrittenAsItWas(t *testing.T) {
	for how, write := range map[string]func(w *world, lane outbox.Lane, e, next *outbox.Event){
		"marked as running": func(w *world, lane outbox.Lane, e, _ *outbox.Event) {
			if err := w.Store.MarkRunning(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}, []*outbox.Event{e}); err != nil {
				w.T.Fatal(err)
			}
		},
		"made to hold": func(w *world, lane outbox.Lane, e, next *outbox.Event) { w.Park(lane, []*outbox.Event{e}, next) },
	} {
		t.Run(how, func(t *testing.T) {
			each(t, func(w *world) {
				list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
				lane := w.ClaimOne("w")
				first, next := w.Event(lane.LaneID, list[0]), w.Event(lane.LaneID, list[1])
				w.SettleEvent(lane, first, outbox.Verdict{Kind: outbox.Defer, Behind: []string{outbox.MediaResource("b")}})
				write(w, lane, first, next)
				if again := w.Event(lane.LaneID, list[0]); !again.Shares(outbox.MediaResource("b")) {
					w.T.Errorf("it is ordered by %s", again.Resources)
				}
				w.Park(lane, nil, next)
				w.Settle(lane, list[0], outboxtest.Done)
				w.Settle(lane, list[1], outboxtest.Done)
			})
		})
	}
}

// An event may end before it is put behind another.
func TestAnEndedEventIsNotParked(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		second := w.Event(lane.LaneID, list[1])
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Exec(`UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`, list[1])
		w.Park(lane, nil, second)
		if got := w.State(list[1]); !strings.HasPrefix(got, "discarded") {
			w.T.Errorf("it is %s", got)
		}
	})
}

// A holder learns which of its events aren't there to be started any more, also
// when it asks again since the answer was lost.
func TestParkingTellsWhatLeftTheWindow(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("c"), outboxtest.Touch("d"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		found := w.Read(lane.LaneID)
		w.SettleEvent(lane, found[0], outboxtest.RetryIn(time.Hour))
		w.Exec(`UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`, list[1])
		w.SettleEvent(lane, found[2], outboxtest.RetryIn(time.Hour)) // parked by itself
		for range 2 {
			if diff := cmp.Diff([]int64{list[1], list[2], list[4]}, w.Park(lane, nil, found[1:]...)); diff != "" {
				w.T.Error(diff)
			}
		}
	})
}
