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
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// The heir reads what the dead worker had read, and what came after it.
func TestWhatADeadWorkerHadReadRunsAgain(t *testing.T) {
	each(t, func(w *world) {
		published := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		old := w.ClaimOne("w")
		if diff := cmp.Diff(published, outboxtest.Sequences(w.Read(old.LaneID))); diff != "" {
			w.T.Fatal(diff)
		}
		later := w.Publish("s", outboxtest.Touch("a"))
		w.Lapse(old.LaneID)
		lane := w.TakeOver("next")[0]
		if diff := cmp.Diff(append(published, later...), outboxtest.Sequences(w.ReadAfter(lane.LaneID, lane.ReadFrom))); diff != "" {
			w.T.Error(diff)
		}
		if status := w.Status(lane.LaneID); status.TaintedTo < published[1] {
			w.T.Errorf("events up to %d may have begun, not only %d", published[1], status.TaintedTo)
		}
	})
}

func TestWhatIsGivenBackUnfinishedIsReadByTheNext(t *testing.T) {
	each(t, func(w *world) {
		published := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		w.Settle(lane, published[0], outboxtest.Done)
		if err := w.Store.Release(w.T.Context(), []outbox.Holding{
			{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: published[0]},
		}); err != nil {
			w.T.Fatal(err)
		}
		next := w.Claim("next")
		if len(next) != 1 {
			w.T.Fatalf("claimed %d lanes, want 1", len(next))
		}
		if diff := cmp.Diff(published[1:], outboxtest.Sequences(w.ReadAfter(lane.LaneID, next[0].ReadFrom))); diff != "" {
			w.T.Error(diff)
		}
	})
}

// discards notes which discarded events may have run.
type discards struct {
	outboxtest.Recorder
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
				heir := w.TakeOver("heir")[0]
				if err := w.Store.Release(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(heir)}); err != nil {
					w.T.Fatal(err)
				}
			},
		} {
			seen := &discards{Recorder: outboxtest.Recorder{DB: w.DB}}
			event := w.Publish(name, outboxtest.Touch(name))[0]
			lane := w.ClaimOne("dead")
			w.Lapse(lane.LaneID)
			then(lane)
			counts, err := outbox.New(w.DB, seen).Discard(w.T.Context(), outbox.Filter{MediaID: name},
				outbox.Action{Actor: "operator", Reason: "it kills workers"})
			if err != nil || counts.Changed != 1 {
				w.T.Fatal(name, counts, err)
			}
			if !seen.tainted[event] {
				w.T.Errorf("%s: nobody knows that it may have written", name)
			}
			w.Exec(`UPDATE {lanes} SET leased_by = NULL, leased_until = NULL, ready_at = NULL`)
		}
	})
}

// The lane's later events are no longer each marked.
func TestALaneThatWasDrainedIsNotSuspectAnyMore(t *testing.T) {
	each(t, func(w *world) {
		event := w.Publish("s", outboxtest.Touch("a"))[0]
		w.Lapse(w.ClaimOne("dead").LaneID)
		lane := w.TakeOver("w")[0]
		w.Settle(lane, event, outboxtest.Done)
		held := outbox.Holding{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: event}
		if err := w.Store.Release(w.T.Context(), []outbox.Holding{held}); err != nil {
			w.T.Fatal(err)
		}
		if n := outboxtest.One[int](w.World, `SELECT lapse_count FROM {lanes}`); n != 0 {
			w.T.Errorf("its lease has lapsed %d times in a row", n)
		}
	})
}

// A mark that comes late is about an attempt that is over.
func TestAnAttemptThatIsOverIsNotMarkedAsRunning(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.Publish("s", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("w")
		was := w.Event(lane.LaneID, sequence)
		w.SettleEvent(lane, was, outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble})
		if err := w.Store.MarkRunning(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}, []*outbox.Event{was}); err != nil {
			w.T.Fatal(err)
		}
		if got := w.State(sequence); !strings.HasPrefix(got, "available") {
			w.T.Errorf("it is %s", got)
		}
	})
}

// An event that brought down workers runs alone from then on, until an operator
// lets it begin anew.
func TestALapsedEventGoesOnRunningAloneUntilItIsReplayed(t *testing.T) {
	each(t, func(w *world) {
		sequence := w.Publish("s", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("w")
		lapsed := failure.New(failure.Transient, failure.Lapsed, "its lease lapsed")
		w.Settle(lane, sequence, outbox.Verdict{Kind: outbox.Retry, Failure: lapsed, Delay: time.Hour})
		counts := func() [2]int {
			return [2]int{outboxtest.One[int](w.World, `SELECT lapse_count FROM {outbox}`), outboxtest.One[int](w.World, `SELECT failure_count FROM {outbox}`)}
		}
		if got, want := counts(), [2]int{outbox.AloneAfter, 1}; got != want {
			w.T.Errorf("lapsed and failed %v times, want %v", got, want)
		}
		if _, err := w.Store.Retry(w.T.Context(), outbox.Filter{MediaID: "a"}, outbox.Action{Actor: "o", Reason: "r"}); err != nil {
			w.T.Fatal(err)
		}
		if got := counts(); got != [2]int{} {
			w.T.Errorf("after the replay it has lapsed and failed %v times", got)
		}
	})
}

// An event that waits for a time of its own isn't let go when its media is free.
func TestADelayOutlastsWhatWasWaitedFor(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		second := w.Event(lane.LaneID, list[1])
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.SettleEvent(lane, second, outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour})
		w.Exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE sequence = ?`, list[0])
		if _, _, err := w.Store.Promote(w.T.Context()); err != nil {
			w.T.Fatal(err)
		}
		w.Settle(lane, list[0], outboxtest.Done)
		if got := outboxtest.Sequences(w.Read(lane.LaneID)); len(got) > 0 {
			w.T.Errorf("%v may run", got)
		}
	})
}

// Another worker may promote an event, and end it, while this one waits for it.
func TestWhatEndedWhileItWasPromotedStaysEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	sequence := w.Publish("s", outboxtest.Touch("a"))[0]
	lane := w.ClaimOne("w")
	w.Settle(lane, sequence, outboxtest.RetryIn(time.Hour))
	w.Exec(`UPDATE {outbox} SET next_attempt_at = 1`)
	tx := w.Begin()
	if _, err := tx.ExecContext(t.Context(), w.DB.SQL(`
		UPDATE {outbox} SET state = 'completed', outcome = 'done', finished_at = {now}, next_attempt_at = NULL, parked = false`)); err != nil {
		t.Fatal(err)
	}
	promoted := make(chan error, 1)
	go func() {
		_, _, err := w.Store.Promote(t.Context())
		promoted <- err
	}()
	w.AwaitBlocked("Promote waits")
	w.Commit(tx)
	if err := <-promoted; err != nil {
		t.Fatal(err)
	}
	if got := w.State(sequence); got != "completed done" {
		t.Errorf("it is %s", got)
	}
}
