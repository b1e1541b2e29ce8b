package outbox_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// waitingLook has a worker look for new events, and waits until the look, which
// has decided what becomes of them, can't go on: somebody has locked the lane
// of service "m", for which it has an event, too. The function returned lets it
// go on, and returns what it did.
func (w *world) waitingLook(look outbox.Look) func() outbox.Assigned {
	w.t.Helper()
	tx, err := w.db.BeginTxx(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = tx.Rollback() }) // it may have ended
	if _, err := tx.ExecContext(w.t.Context(), w.db.SQL(`
		SELECT 1 FROM {lanes} WHERE service_id = 'm' FOR UPDATE`)); err != nil {
		w.t.Fatal(err)
	}
	type answer struct {
		outbox.Assigned
		error
	}
	looked := make(chan answer, 1)
	go func() {
		done, err := w.store.Assign(w.t.Context(), look)
		looked <- answer{done, err}
	}()
	w.awaitBlocked("the look waits")
	return func() outbox.Assigned {
		w.t.Helper()
		if err := tx.Rollback(); err != nil {
			w.t.Fatal(err)
		}
		a := <-looked
		if a.error != nil {
			w.t.Fatal(a.error)
		}
		return a.Assigned
	}
}

// makeSlow makes the lane of service "m", whose events a look writes.
func (w *world) makeSlow() {
	w.t.Helper()
	w.exec(`INSERT INTO {lanes} (service_id, environment_id, leased_by, leased_until) VALUES ('m', '', 'gone', 1)`)
}

// A worker may lose a lane between a look's decisions and its writes: what it
// took comes before what the look would write, and is nowhere but in its memory.
func TestNothingIsWrittenIntoALaneThatWasTakenOverMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.makeSlow()
	w.publish("s", touch("before"))
	found := w.take("w")
	lane := found.Claimed[0].Lane
	w.settleEvent(lane, found.Taken[0], done)

	w.publish("m", touch("x"))
	list := w.publish("s", touch("a"), touch("a"))
	goOn := w.waitingLook(outbox.Look{
		Worker: "w", Lease: lease, Take: takeUpTo(1), Carried: func(int64) []int64 { return []int64{} },
	})
	w.lapse(lane.LaneID)
	heir := w.another()
	if taken, err := heir.TakeOver(t.Context(), "heir", 10, lease); err != nil || !slices.ContainsFunc(taken,
		func(l outbox.Lane) bool { return l.LaneID == lane.LaneID }) {
		t.Fatal(taken, err)
	}
	if got := goOn(); !got.More {
		t.Error("the look doesn't say that there is more")
	}
	if got := sequences(w.read(lane.LaneID)); len(got) > 0 && got[0] != list[0] {
		t.Errorf("the heir begins with %v, and %d comes first", got, list[0])
	}
	if err := heir.AssignAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sequences(w.read(lane.LaneID)); !slices.Equal(got, list) {
		t.Errorf("the heir finds %v, want %v", got, list)
	}
}

// Who stood still for longer than its lease doesn't know that it has lost a lane:
// its looks have passed what it took there, and its heir may not have found it
// yet.
func TestWhoLostALaneWritesNothingAheadOfWhatItHadTaken(t *testing.T) {
	each(t, func(w *world) {
		for name, carries := range map[string]bool{"forgot what it took": false, "still carries it": true} {
			list := w.publish(name, touch("a"))
			lane := w.take("old").Claimed[0].Lane
			for range 3 { // what was seen counts as passed from the second look on
				w.take("old", list...)
			}
			if w.store.Passed() < list[0] {
				w.t.Fatalf("%s: looks begin above %d, and %d was taken", name, w.store.Passed(), list[0])
			}
			w.lapse(lane.LaneID)
			if lanes, err := w.another().TakeOver(w.t.Context(), "heir", 10, lease); err != nil || len(lanes) != 1 {
				w.t.Fatal(lanes, err)
			}
			list = append(list, w.publish(name, touch("a"))...)
			w.exec(`UPDATE {outbox} SET created_at = created_at - ?`, time.Minute.Microseconds()) // else the heir is given time

			var carried []int64
			if carries {
				carried = list[:1]
			}
			got := w.take("old", carried...)
			if found := sequences(w.read(lane.LaneID)); len(found) > 0 && found[0] != list[0] {
				w.t.Fatalf("%s: the heir begins with %v, and %d comes first", name, found, list[0])
			}
			want := []outbox.Holding{{LaneID: lane.LaneID, Token: lane.Token}}
			if diff := cmp.Diff(want, got.Lost); diff != "" || !got.More {
				w.t.Errorf("%s: lost (-want +got):\n%s, more: %t", name, diff, got.More)
			}
			if got := w.take("old"); len(got.Lost) > 0 {
				w.t.Errorf("%s: it loses %v once more", name, got.Lost)
			}
			if found := sequences(w.read(lane.LaneID)); !slices.Equal(found, list) {
				w.t.Errorf("%s: the heir finds %v, want %v", name, found, list)
			}
		}
	})
}

// It may even get the lane again, once its heir has died before it looked.
func TestWhoGotALostLaneAgainTakesNothingAheadOfWhatItHadTaken(t *testing.T) {
	each(t, func(w *world) {
		first := w.publish("s", touch("a"))
		lane := w.take("w").Claimed[0].Lane
		for range 3 { // what was seen counts as passed from the second look on
			w.take("w", first...)
		}
		w.lapse(lane.LaneID)
		heir := w.takeOver("heir")[0]
		drained := outbox.Holding{LaneID: heir.LaneID, Token: heir.Token, SeenWake: w.status(heir.LaneID).Wake}
		if err := w.another().Release(w.t.Context(), []outbox.Holding{drained}, nil); err != nil {
			w.t.Fatal(err)
		}
		w.exec(`UPDATE {lanes} SET wake = wake + 1, ready_at = 1`) // as when its integration is resumed
		if lanes := w.claim("w"); len(lanes) != 1 {
			w.t.Fatalf("claimed %v", lanes)
		}
		w.publish("s", touch("a"))
		got, ok, err := w.store.Peek(w.t.Context(), outbox.Look{
			Worker: "w", Lease: lease, Take: takeAll, Carried: func(int64) []int64 { return []int64{} },
		})
		if err != nil || ok || len(got.Taken) > 0 {
			w.t.Errorf("took %v (%t, %v), and %d comes first", sequences(got.Taken), ok, err, first[0])
		}
		if got := w.take("w"); len(got.Taken) > 0 || len(got.Lost) != 1 {
			w.t.Errorf("a look took %v and lost %v", sequences(got.Taken), got.Lost)
		}
	})
}

// What it had finished, and could not settle, comes first and is not in its
// memory any more.
func TestWhoLostALaneGivesNothingBackThere(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		found := w.take("old")
		lane := found.Claimed[0].Lane
		w.lapse(lane.LaneID)
		heir := w.takeOver("heir")[0]
		w.settleEvent(lane, found.Taken[0], done)
		if err := w.store.Release(w.t.Context(), []outbox.Holding{holdingOf(lane)}, found.Taken[1:]); err != nil {
			w.t.Fatal(err)
		}
		if got := w.assigned(); len(got) > 0 {
			w.t.Errorf("%v are written, and %d comes first", got, list[0])
		}
		if _, lost, err := w.store.Renew(w.t.Context(), []outbox.Holding{holdingOf(heir)}, lease); err != nil || len(lost) > 0 {
			w.t.Errorf("the heir has lost %v: %v", lost, err)
		}
	})
}

// The clock may be set back between two events.
func TestWhatFollowsAnEventThatIsLeftForItsHolderIsLeftToo(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("a"))
		w.take("holder")
		w.exec(`UPDATE {outbox} SET created_at = created_at + ?`, time.Hour.Microseconds())
		w.exec(`UPDATE {outbox} SET created_at = 1 WHERE sequence = ?`, list[1])
		done, err := w.another().Assign(w.t.Context(), outbox.Look{Worker: "other", Lease: lease, Take: takeFree})
		if err != nil {
			w.t.Fatal(err)
		}
		if got := w.assigned(); len(got) > 0 || done.Left != 2 {
			w.t.Errorf("%v are written, %d left", got, done.Left)
		}
	})
}

// The snapshot would be taken without what the other holder has yet to find.
func TestNoCopyIsOpenedWhereALaneWasTakenOverMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.makeSlow()
	w.publish("s", touch("before"))
	found := w.take("w")
	lane := found.Claimed[0].Lane
	w.settleEvent(lane, found.Taken[0], done)

	w.publish("m", touch("x"))
	w.publish("s", touch("a"))
	w.publishIn("s", "copy", events.EnvironmentCreated{EnvironmentServiceID: "copy"})
	goOn := w.waitingLook(outbox.Look{
		Worker: "w", Lease: lease, Take: takeAll, Carried: func(int64) []int64 { return []int64{} },
	})
	w.lapse(lane.LaneID)
	heir := w.another()
	if _, err := heir.TakeOver(t.Context(), "heir", 10, lease); err != nil {
		t.Fatal(err)
	}
	copies := func() int { return one[int](w, `SELECT count(*) FROM {copies}`) }
	if got := goOn(); copies() > 0 || !got.More {
		t.Errorf("%d copies are open (more: %t)", copies(), got.More)
	}
	if err := heir.AssignAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := copies(); n != 1 {
		t.Errorf("%d copies are open, want 1", n)
	}
}

// A lane that nobody has may get a holder, and events that wait for a retry,
// and be given back, all while a look is about to lease it.
func TestALaneIsLeasedAsTheLookSawItOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.makeSlow()
	dead := w.publish("s", touch("a"))[0]
	lane := w.claimOne("earlier")
	release := func(l outbox.Lane) {
		held := outbox.Holding{LaneID: l.LaneID, Token: l.Token, ReadFrom: dead, SeenWake: w.status(l.LaneID).Wake}
		if err := w.store.Release(t.Context(), []outbox.Holding{held}, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.settle(lane, dead, outbox.Verdict{Kind: outbox.Die, Failure: ruined})
	release(lane)

	w.publish("m", touch("x"))
	fresh := w.publish("s", touch("a"))[0]
	goOn := w.waitingLook(outbox.Look{
		Worker: "w", Lease: lease, Take: takeFree, Carried: func(int64) []int64 { return []int64{} },
	})
	// As an operator's retry does, which would wait for the look.
	w.exec(`UPDATE {outbox} SET state = 'available', requeued = true, finished_at = NULL WHERE sequence = ?`, dead)
	w.exec(`UPDATE {lanes} SET wake = wake + 1, ready_at = 1 WHERE lane_id = ?`, lane.LaneID)
	lanes := w.claim("other")
	if len(lanes) != 1 {
		t.Fatalf("claimed %v", lanes)
	}
	w.settle(lanes[0], dead, retryIn(time.Hour))
	release(lanes[0])
	if got := goOn(); slices.Contains(sequences(got.Taken), fresh) || !got.More {
		t.Errorf("took %v (more: %t), and %d, of the same media, waits for a retry", sequences(got.Taken), got.More, dead)
	}
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

// What a dead worker did is not known before somebody takes its lanes over, and
// an operator may be faster.
func TestAnEventThatADeadWorkerMayHaveRunIsDiscardedAsSuch(t *testing.T) {
	each(t, func(w *world) {
		for name, then := range map[string]func(lane outbox.Lane){
			"not taken over yet": func(outbox.Lane) {},
			"taken over": func(lane outbox.Lane) {
				heir := w.takeOver("heir")[0]
				if err := w.store.Release(w.t.Context(), []outbox.Holding{holdingOf(heir)}, nil); err != nil {
					w.t.Fatal(err)
				}
			},
		} {
			seen := &discards{recorder: recorder{db: w.db}}
			event := w.publish(name, touch(name))[0]
			w.assign()
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

func TestAWorkerThatLostALaneWritesNothingIntoIt(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		found := w.take("old")
		lane := found.Claimed[0].Lane
		w.lapse(lane.LaneID)
		w.takeOver("new")
		if err := w.store.Write(w.t.Context(), []outbox.Holding{holdingOf(lane)}, found.Taken); err != nil {
			w.t.Fatal(err)
		}
		if got := w.assigned(); len(got) > 0 {
			w.t.Errorf("%v were written", got)
		}
	})
}

// The lane's later events are taken again, and are no longer each marked.
func TestALaneThatWasDrainedIsNotSuspectAnyMore(t *testing.T) {
	each(t, func(w *world) {
		event := w.publish("s", touch("a"))[0]
		w.lapse(w.claimOne("dead").LaneID)
		lane := w.takeOver("w")[0]
		w.settle(lane, event, done)
		held := outbox.Holding{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: event, SeenWake: w.status(lane.LaneID).Wake}
		if err := w.store.Release(w.t.Context(), []outbox.Holding{held}, nil); err != nil {
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

// Who brought down workers runs alone from then on, until an operator lets it
// begin anew.
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

// What waits for a time of its own isn't let go when what it shares is free.
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
	tx, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // it may have ended
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
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-promoted; err != nil {
		t.Fatal(err)
	}
	if got := w.state(sequence); got != "completed done" {
		t.Errorf("it is %s", got)
	}
}

// What concerns a whole environment isn't taken: snapshots and barriers need it
// in its lane.
func TestAPeekLeavesWhatConcernsAWholeEnvironment(t *testing.T) {
	each(t, func(w *world) {
		first := w.publishIn("s", "dev", touch("a"))
		w.take("w")
		w.publishIn("s", "dev", events.EnvironmentDeleted{})
		done, ok, err := w.store.Peek(w.t.Context(), outbox.Look{
			Worker: "w", Lease: lease, Take: takeAll, Carried: func(int64) []int64 { return first },
		})
		if err != nil || ok || len(done.Taken) > 0 {
			w.t.Errorf("took %v (%t): %v", sequences(done.Taken), ok, err)
		}
	})
}

// Also below what was dead when it was found, and was read when an operator let it
// run.
func TestALateEventIsReadBelowAReplayedOneThatWasNeverInItsLane(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.publish("s", touch("a"))
	lane := w.claimOne("w")
	tx, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // it may have ended
	late := w.insert(tx, "s", "", touch("b"))
	invalid := w.insertRaw(w.db, "s", "", events.MediaDeletedType, `{"media_id": 7}`)
	w.assign()
	if counts, err := w.store.Retry(t.Context(), outbox.Filter{States: []string{outbox.Dead}},
		outbox.Action{Actor: "operator", Reason: "it is understood now"}); err != nil || counts.Changed != 1 {
		t.Fatal(counts, err)
	}
	if got := sequences(w.read(lane.LaneID)); !slices.Contains(got, invalid) {
		t.Fatalf("%v are read, want %d too", got, invalid)
	}
	w.settle(lane, invalid, outbox.Verdict{Kind: outbox.Die, Failure: ruined})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	w.assign()
	if got := sequences(w.readAfter(lane.LaneID, invalid)); !slices.Equal(got, []int64{late}) {
		t.Errorf("after %d, %v are read again, want %d", invalid, got, late)
	}
}

// Events that commit late are put below what was read, one after the other.
func TestEveryLateEventIsReadAgainBelowWhatWasRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	var late []*sqlx.Tx
	var list []int64
	for _, media := range []string{"a", "b"} {
		tx, err := w.db.BeginTxx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }() // it may have ended
		list = append(list, w.insert(tx, "s", "", touch(media)))
		late = append(late, tx)
	}
	last := w.publish("s", touch("c"))[0]
	lane := w.claimOne("w")
	for i, tx := range late {
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		w.assign()
		if got := sequences(w.readAfter(lane.LaneID, last)); !slices.Equal(got, list[:i+1]) {
			t.Errorf("after %d late ones, %v are read again, want %v", i+1, got, list[:i+1])
		}
	}
}
