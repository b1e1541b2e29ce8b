package outbox_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// The heir reads what the dead worker had read, and what came after it.
func TestWhatADeadWorkerHadReadRunsAgain(t *testing.T) {
	each(t, func(w *world) {
		published := w.publish("s", touch("a"), touch("b"))
		old := w.claimOne("w")
		if diff := cmp.Diff(published, sequences(w.read(old.LaneID))); diff != "" {
			w.t.Fatal(diff)
		}
		later := w.publish("s", touch("a"))
		w.lapse(old.LaneID)
		lane := w.takeOver("next")[0]
		if diff := cmp.Diff(append(published, later...), sequences(w.readAfter(lane.LaneID, lane.ReadFrom))); diff != "" {
			w.t.Error(diff)
		}
		if status := w.status(lane.LaneID); status.TaintedTo < published[1] {
			w.t.Errorf("events up to %d may have begun, not only %d", published[1], status.TaintedTo)
		}
	})
}

func TestWhatIsGivenBackUnfinishedIsReadByTheNext(t *testing.T) {
	each(t, func(w *world) {
		published := w.publish("s", touch("a"), touch("b"))
		lane := w.claimOne("w")
		w.settle(lane, published[0], done)
		if err := w.store.Release(w.t.Context(), []outbox.Holding{
			{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: published[0]},
		}); err != nil {
			w.t.Fatal(err)
		}
		next := w.claim("next")
		if len(next) != 1 {
			w.t.Fatalf("claimed %d lanes, want 1", len(next))
		}
		if diff := cmp.Diff(published[1:], sequences(w.readAfter(lane.LaneID, next[0].ReadFrom))); diff != "" {
			w.t.Error(diff)
		}
	})
}

// discards notes which discarded events may have run.
type discards struct {
	recorder
	tainted map[int64]bool
}

func (d *discards) RecordDiscarded(_ context.Context, _ *sqlx.Tx, _ []*outbox.Event, tainted map[int64]bool) error {
	d.tainted = tainted
	return nil
}

// Nothing tells what a dead worker did before its lanes are taken over, and an
// operator may be faster.
func TestAnEventThatADeadWorkerMayHaveRunIsDiscardedAsSuch(t *testing.T) {
	each(t, func(w *world) {
		for name, then := range map[string]func(lane outbox.Lane){
			"not taken over yet": func(outbox.Lane) {},
			"taken over": func(lane outbox.Lane) {
				heir := w.takeOver("heir")[0]
				if err := w.store.Release(w.t.Context(), []outbox.Holding{holdingOf(heir)}); err != nil {
					w.t.Fatal(err)
				}
			},
		} {
			seen := &discards{recorder: recorder{db: w.db}}
			event := w.publish(name, touch(name))[0]
			lane := w.claimOne("dead")
			w.lapse(lane.LaneID)
			then(lane)
			counts, err := outbox.New(w.db, seen).Discard(w.t.Context(), outbox.Filter{MediaID: name},
				outbox.Action{Actor: "operator", Reason: "it kills workers"})
			if err != nil || counts.Changed != 1 {
				w.t.Fatal(name, counts, err)
			}
			if !seen.tainted[event] {
				w.t.Errorf("%s: nobody knows that it may have written", name)
			}
			w.exec(`UPDATE {lanes} SET leased_by = NULL, leased_until = NULL, ready_at = NULL`)
		}
	})
}

// The lane's later events are no longer each marked.
func TestALaneThatWasDrainedIsNotSuspectAnyMore(t *testing.T) {
	each(t, func(w *world) {
		event := w.publish("s", touch("a"))[0]
		w.lapse(w.claimOne("dead").LaneID)
		lane := w.takeOver("w")[0]
		w.settle(lane, event, done)
		held := outbox.Holding{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: event}
		if err := w.store.Release(w.t.Context(), []outbox.Holding{held}); err != nil {
			w.t.Fatal(err)
		}
		if n := one[int](w, `SELECT lapse_count FROM {lanes}`); n != 0 {
			w.t.Errorf("its lease has lapsed %d times in a row", n)
		}
	})
}

// A mark that comes late is about an attempt that is over.
func TestAnAttemptThatIsOverIsNotMarkedAsRunning(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.publish("s", touch("a"))[0]
		lane := w.claimOne("w")
		was := w.event(lane.LaneID, sequence)
		w.settleEvent(lane, was, outbox.Verdict{Kind: outbox.Yield, Failure: trouble})
		if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(lane)}, []*outbox.Event{was}); err != nil {
			w.t.Fatal(err)
		}
		if got := w.state(sequence); !strings.HasPrefix(got, "available") {
			w.t.Errorf("it is %s", got)
		}
	})
}

// An event that brought down workers runs alone from then on, until an operator
// lets it begin anew.
func TestALapsedEventGoesOnRunningAloneUntilItIsReplayed(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.publish("s", touch("a"))[0]
		lane := w.claimOne("w")
		lapsed := failure.New(failure.Transient, failure.Lapsed, "its lease lapsed")
		w.settle(lane, sequence, outbox.Verdict{Kind: outbox.Retry, Failure: lapsed, Delay: time.Hour})
		counts := func() [2]int {
			return [2]int{one[int](w, `SELECT lapse_count FROM {outbox}`), one[int](w, `SELECT failure_count FROM {outbox}`)}
		}
		if got, want := counts(), [2]int{outbox.AloneAfter, 1}; got != want {
			w.t.Errorf("lapsed and failed %v times, want %v", got, want)
		}
		if _, err := w.store.Retry(w.t.Context(), outbox.Filter{MediaID: "a"}, outbox.Action{Actor: "o", Reason: "r"}); err != nil {
			w.t.Fatal(err)
		}
		if got := counts(); got != [2]int{} {
			w.t.Errorf("after the replay it has lapsed and failed %v times", got)
		}
	})
}

// An event that waits for a time of its own isn't let go when its media is free.
func TestADelayOutlastsWhatWasWaitedFor(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		lane := w.claimOne("w")
		second := w.event(lane.LaneID, list[1])
		w.settle(lane, list[0], retryIn(time.Hour))
		w.settleEvent(lane, second, outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour})
		w.exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE sequence = ?`, list[0])
		if _, _, err := w.store.Promote(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		w.settle(lane, list[0], done)
		if got := sequences(w.read(lane.LaneID)); len(got) > 0 {
			w.t.Errorf("%v may run", got)
		}
	})
}

// Another worker may promote an event, and end it, while this one waits for it.
func TestWhatEndedWhileItWasPromotedStaysEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	sequence := w.publish("s", touch("a"))[0]
	lane := w.claimOne("w")
	w.settle(lane, sequence, retryIn(time.Hour))
	w.exec(`UPDATE {outbox} SET next_attempt_at = 1`)
	tx := w.begin()
	if _, err := tx.ExecContext(t.Context(), w.db.SQL(`
		UPDATE {outbox} SET state = 'completed', outcome = 'done', finished_at = {now}, next_attempt_at = NULL, parked = false`)); err != nil {
		t.Fatal(err)
	}
	promoted := make(chan error, 1)
	go func() {
		_, _, err := w.store.Promote(t.Context())
		promoted <- err
	}()
	w.awaitBlocked("Promote waits")
	w.commit(tx)
	if err := <-promoted; err != nil {
		t.Fatal(err)
	}
	if got := w.state(sequence); got != "completed done" {
		t.Errorf("it is %s", got)
	}
}
