package outbox_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

var operator = outbox.Action{Actor: "operator", Reason: "mended"}

// replay lets an operator run an event again.
func (w *world) replay(sequence int64) {
	w.t.Helper()
	counts, err := w.store.Retry(w.t.Context(), outbox.Filter{EventIDs: []string{w.idOf(sequence)}}, operator)
	if err != nil || counts.Changed != 1 {
		w.t.Fatal(counts, err)
	}
}

// The answer to a commit may be lost, so that an attempt's end comes again after an
// operator replayed the event. That attempt is over.
func TestAnEndThatComesAgainAfterAReplayChangesNothing(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.publish("s", touch("a"))[0]
		lane := w.claimOne("w")
		e := w.event(lane.LaneID, sequence)
		verdict := outbox.Verdict{Kind: outbox.Die, Failure: ruined}
		w.settleEvent(lane, e, verdict)
		w.replay(sequence)
		before := w.dump()
		w.settleEvent(lane, e, verdict)
		if diff := cmp.Diff(before, w.dump()); diff != "" {
			w.t.Errorf("what changed: %s", diff)
		}
		if n := one[int](w, `SELECT count(*) FROM {attempts}`); n != 1 {
			w.t.Errorf("%d attempts are kept of one", n)
		}
		w.settle(lane, sequence, done)
		if got := w.state(sequence); got != "completed done" {
			w.t.Errorf("the replayed event is %s", got)
		}
	})
}

// An attempt whose event was settled, discarded or replayed meanwhile is over: its
// end changes nothing, and the ledger isn't told of it.
func TestAnAttemptThatIsOverWritesNothing(t *testing.T) {
	for how, meanwhile := range map[string]func(w *world, lane outbox.Lane, e *outbox.Event){
		"completed": func(w *world, lane outbox.Lane, e *outbox.Event) { w.settleEvent(lane, e, done) },
		"interrupted": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.settleEvent(lane, e, outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		},
		"to be retried": func(w *world, lane outbox.Lane, e *outbox.Event) { w.settleEvent(lane, e, retryIn(time.Hour)) },
		"replayed": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.settleEvent(lane, e, outbox.Verdict{Kind: outbox.Die, Failure: ruined})
			w.replay(e.Sequence)
		},
		"discarded": func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.settleEvent(lane, e, retryIn(time.Hour))
			if counts, err := w.store.Discard(w.t.Context(), outbox.Filter{ServiceID: "s"}, operator); err != nil || counts.Changed != 1 {
				w.t.Fatal(counts, err)
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			each(t, func(w *world) {
				for _, verdict := range []outbox.Verdict{
					done, {Kind: outbox.Die, Failure: ruined}, retryIn(time.Hour), {Kind: outbox.Yield, Failure: trouble},
				} {
					w.exec(`DELETE FROM {effects}`)
					w.exec(`DELETE FROM {holds}`)
					w.exec(`DELETE FROM {outbox}`)
					w.exec(`DELETE FROM {lanes}`)
					sequence := w.publish("s", touch("a"))[0]
					lane := w.claimOne("w")
					e := w.event(lane.LaneID, sequence)
					meanwhile(w, lane, e)
					state, before := w.state(sequence), w.dump()
					attempts, effects := one[int](w, `SELECT count(*) FROM {attempts}`), w.effects()
					seen := &recorder{db: w.db}
					late := settlement(lane, e, verdict)
					late.Started = late.Started.Add(time.Hour) // the effects are told apart by it
					if err := outbox.New(w.db, seen).Settle(w.t.Context(), []*outbox.Settlement{late}); err != nil {
						w.t.Fatal(err)
					}
					if got := w.state(sequence); got != state {
						w.t.Errorf("a late end of kind %d makes it %s, and it was %s", verdict.Kind, got, state)
					}
					if diff := cmp.Diff(before, w.dump()); diff != "" {
						w.t.Errorf("what a late end of kind %d changed: %s", verdict.Kind, diff)
					}
					if n := one[int](w, `SELECT count(*) FROM {attempts}`); n != attempts || seen.calls.Load() > 0 || !slices.Equal(effects, w.effects()) {
						w.t.Errorf("a late end of kind %d: %d attempts, were %d; the ledger was told %d times", verdict.Kind, n, attempts, seen.calls.Load())
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
			if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(lane)}, []*outbox.Event{e}); err != nil {
				w.t.Fatal(err)
			}
		},
		"made to hold": func(w *world, lane outbox.Lane, e, next *outbox.Event) { w.park(lane, []*outbox.Event{e}, next) },
	} {
		t.Run(how, func(t *testing.T) {
			each(t, func(w *world) {
				list := w.publish("s", touch("a"), touch("b"))
				lane := w.claimOne("w")
				first, next := w.event(lane.LaneID, list[0]), w.event(lane.LaneID, list[1])
				w.settleEvent(lane, first, outbox.Verdict{Kind: outbox.Defer, Behind: []string{outbox.MediaResource("b")}})
				write(w, lane, first, next)
				if again := w.event(lane.LaneID, list[0]); !again.Shares(outbox.MediaResource("b")) {
					w.t.Errorf("it is ordered by %s", again.Resources)
				}
				w.park(lane, nil, next)
				w.settle(lane, list[0], done)
				w.settle(lane, list[1], done)
			})
		})
	}
}

// An event may end before it is put behind another.
func TestAnEndedEventIsNotParked(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		lane := w.claimOne("w")
		second := w.event(lane.LaneID, list[1])
		w.settle(lane, list[0], retryIn(time.Hour))
		w.exec(`UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`, list[1])
		w.park(lane, nil, second)
		if got := w.state(list[1]); !strings.HasPrefix(got, "discarded") {
			w.t.Errorf("it is %s", got)
		}
	})
}

// A holder learns which of its events aren't there to be started any more.
func TestParkingTellsWhatIsGone(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"), touch("c"), touch("d"), touch("a"))
		lane := w.claimOne("w")
		found := w.read(lane.LaneID)
		w.settleEvent(lane, found[0], retryIn(time.Hour))
		w.exec(`UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`, list[1])
		w.settleEvent(lane, found[2], retryIn(time.Hour)) // parked by itself
		parking, err := w.store.Park(w.t.Context(), holdingOf(lane), nil, found[1:])
		if err != nil {
			w.t.Fatal(err)
		}
		want := outbox.Parking{
			Parked: map[int64]bool{list[4]: true},
			Gone:   map[int64]bool{list[1]: true, list[2]: true},
		}
		if diff := cmp.Diff(want, parking); diff != "" {
			w.t.Error(diff)
		}
	})
}
