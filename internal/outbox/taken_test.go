package outbox_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// takeFree has room in every lane that nobody holds.
func takeFree() func(*outbox.LaneState) bool { return (*outbox.LaneState).Free }

// take looks for new events as a worker does that has room for all of lanes
// that nobody holds, and carries what it took before.
func (w *world) take(worker string, carried ...int64) outbox.Assigned {
	w.t.Helper()
	done, err := w.store.Assign(w.t.Context(), outbox.Look{
		Worker: worker, Lease: lease, Take: takeFree,
		Carried: func(int64) []int64 { return append([]int64{}, carried...) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

func (w *world) assigned() []int64 {
	w.t.Helper()
	return all[int64](w, `SELECT sequence FROM {outbox} WHERE lane_id IS NOT NULL ORDER BY sequence`)
}

func TestTakenEventsAreWrittenOnceWhenTheyEnd(t *testing.T) {
	each(t, func(w *world) {
		published := w.publish("s", touch("a"), touch("b"))
		taken := w.take("w")
		if diff := cmp.Diff(published, sequences(taken.Taken)); diff != "" {
			w.t.Fatal(diff)
		}
		if got := w.assigned(); len(got) > 0 || len(taken.Claimed) != 1 {
			w.t.Fatalf("%v are written, %d lanes leased", got, len(taken.Claimed))
		}
		lane := taken.Claimed[0].Lane
		for i, verdict := range []outbox.Verdict{done, retryIn(time.Hour)} {
			w.settleEvent(lane, taken.Taken[i], verdict)
		}
		if diff := cmp.Diff([]string{"completed done", "retryable server_error"}, []string{w.state(published[0]), w.state(published[1])}); diff != "" {
			w.t.Error(diff)
		}
		if diff := cmp.Diff(published, w.assigned()); diff != "" {
			w.t.Error(diff)
		}
		if got := one[string](w, `SELECT media_id FROM {outbox} WHERE sequence = ?`, published[0]); got != "a" {
			w.t.Errorf("the media is %q", got)
		}
	})
}

// Its lane must be taken over, and what was taken looked for again: nothing
// else tells of it.
func TestWhatADeadWorkerHadTakenRunsAgain(t *testing.T) {
	each(t, func(w *world) {
		published := w.publish("s", touch("a"), touch("b"))
		old := w.take("w").Claimed[0].Lane
		later := w.publish("s", touch("a"))
		w.lapse(old.LaneID)
		lane := w.takeOver("next")[0]
		w.store.Refind(0)
		w.assign()
		if diff := cmp.Diff(append(published, later...), sequences(w.read(lane.LaneID))); diff != "" {
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
		taken := w.take("w")
		lane := taken.Claimed[0].Lane
		w.settleEvent(lane, taken.Taken[0], done)
		if err := w.store.Release(w.t.Context(), []outbox.Holding{{LaneID: lane.LaneID, Token: lane.Token, SeenWake: taken.Claimed[0].Wake}},
			taken.Taken[1:]); err != nil {
			w.t.Fatal(err)
		}
		next := w.claim("next")
		if len(next) != 1 {
			w.t.Fatalf("claimed %d lanes, want 1", len(next))
		}
		if diff := cmp.Diff(published[1:], sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Error(diff)
		}
	})
}

// What has to be written goes into a lane behind what is taken of it: nobody
// else may get the lane and begin with that.
func TestWhatFollowsTakenEventsIsWrittenUnderTheirLease(t *testing.T) {
	each(t, func(w *world) {
		first := w.publishIn("s", "dev", touch("a"))
		rest := w.publishIn("s", "dev", events.EnvironmentDeleted{}, touch("a"))
		got := w.take("w")
		if diff := cmp.Diff(first, sequences(got.Taken)); diff != "" {
			w.t.Error(diff)
		}
		if others := w.claim("other"); len(others) > 0 {
			w.t.Error("another worker got the lane")
		}
		if diff := cmp.Diff(rest, w.assigned()); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestWhatFollowsEventsThatCanNotBeTakenWaitsForThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.exec(`INSERT INTO {lanes} (service_id, environment_id) VALUES ('s', 'dev')`)
	first := w.publishIn("s", "dev", touch("a"))
	rest := w.publishIn("s", "dev", events.EnvironmentDeleted{}, touch("a"))
	tx, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec(w.db.SQL(`SELECT 1 FROM {lanes} FOR NO KEY UPDATE`)); err != nil {
		t.Fatal(err)
	}
	// Who waits for the lock gets it, and is found out, rather than waiting for ever.
	unlock := time.AfterFunc(10*time.Second, func() { _ = tx.Rollback() })
	defer unlock.Stop()
	if got := w.take("w"); len(got.Taken) > 0 || len(w.assigned()) > 0 || !got.More {
		t.Errorf("took %v and wrote %v, although the lane is locked", sequences(got.Taken), w.assigned())
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, sequences(w.take("w").Taken)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(rest, w.assigned()); diff != "" {
		t.Error(diff)
	}
}

// Some of what a worker has taken may be in the lane already, or comes after it
// there, when the worker dies: who takes the lane over reads it at once.
func TestWhatADeadWorkerHadTakenIsReadBeforeWhatFollows(t *testing.T) {
	each(t, func(w *world) {
		first := w.publish("s", touch("a"))
		lane := w.take("dead").Claimed[0]
		w.publish("other", touch("a"))
		first = append(first, w.publish("s", touch("a"))...)
		if _, err := w.store.Assign(w.t.Context(), outbox.Look{
			Worker: "dead", Lease: lease, Carried: func(int64) []int64 { return first[:1] },
		}); err != nil {
			w.t.Fatal(err)
		}
		last := w.publish("s", touch("a"))
		w.lapse(lane.LaneID)
		w.takeOver("heir")
		if diff := cmp.Diff(first, sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Error(diff)
		}
		w.store.Refind(0)
		w.assign()
		if diff := cmp.Diff(append(first, last...), sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Errorf("after the next look: %s", diff)
		}
	})
}

func TestNothingIsTakenAheadOfWhatComesBefore(t *testing.T) {
	for name, before := range map[string]func(w *world){
		"an event to be read": func(w *world) { w.publish("s", touch("b")); w.assign() },
		"a parked event":      func(w *world) { w.exec(`INSERT INTO {holds} VALUES (1, 'm:x', 1)`) },
		"a pause":             func(w *world) { w.exec(`UPDATE {lanes} SET held = true`) },
		"a lease that lapsed": func(w *world) { w.exec(`UPDATE {lanes} SET leased_by = 'dead', leased_until = 1`) },
		"a snapshot that is due": func(w *world) {
			w.publishIn("s", "new", events.EnvironmentCreated{EnvironmentServiceID: "new"})
			w.assign()
		},
		"a copy": func(w *world) {
			w.exec(`INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
				VALUES (1, 1, 99, 'x', 'active', 0)`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w *world) {
				w.exec(`INSERT INTO {lanes} (service_id, environment_id) VALUES ('s', '')`)
				before(w)
				event := w.publish("s", touch("a"))[0]
				if taken := w.take("w"); len(taken.Taken) > 0 {
					w.t.Errorf("took %v\n%s", sequences(taken.Taken), w.dump())
				}
				if one[*int64](w, `SELECT lane_id FROM {outbox} WHERE sequence = ?`, event) == nil {
					w.t.Error("the event was neither taken nor written")
				}
			})
		})
	}
}

// A snapshot looks for unfinished events in the database.
func TestTheEventsBeforeASnapshotAreInTheirLane(t *testing.T) {
	each(t, func(w *world) {
		before := w.publish("s", touch("a"), touch("b"))
		w.take("w")
		copying := w.publishIn("s", "new", events.EnvironmentCreated{EnvironmentServiceID: "new"})
		if done := w.take("w", before...); !done.Created || len(done.Taken) > 0 {
			w.t.Errorf("created: %v, took %v", done.Created, sequences(done.Taken))
		}
		if diff := cmp.Diff(append(before, copying...), w.assigned()); diff != "" {
			w.t.Error(diff)
		}
	})
}

// Nobody has an event any more that looks have passed: they find it once it is
// known to be lost.
func TestALostEventIsFoundAgain(t *testing.T) {
	each(t, func(w *world) {
		carrying := func(list ...int64) func(int64) []int64 {
			return func(after int64) []int64 {
				return slices.DeleteFunc(append([]int64{}, list...), func(sequence int64) bool { return sequence <= after })
			}
		}
		look := func(carried ...int64) {
			w.t.Helper()
			if _, err := w.store.Assign(w.t.Context(), outbox.Look{Worker: "w", Lease: lease, Carried: carrying(carried...)}); err != nil {
				w.t.Fatal(err)
			}
		}
		first := w.publish("s", touch("a"))[0]
		w.take("w")
		next := w.publish("t", touch("a"))[0]
		for range 3 { // what is open during one look is known by the next
			look(first)
		}
		if lost, err := w.store.FindLost(w.t.Context(), carrying(first)); lost || err != nil {
			w.t.Errorf("what is carried is lost: %t, %v", lost, err)
		}
		if look(); !slices.Equal(w.assigned(), []int64{next}) {
			w.t.Errorf("a look found %v before it was known to be lost", w.assigned())
		}
		if lost, err := w.store.FindLost(w.t.Context(), carrying()); !lost || err != nil {
			w.t.Errorf("a lost event wasn't found: %t, %v", lost, err)
		}
		if look(); !slices.Equal(w.assigned(), []int64{first, next}) {
			w.t.Errorf("assigned: %v", w.assigned())
		}
		if lost, err := w.store.FindLost(w.t.Context(), carrying()); lost || err != nil {
			w.t.Errorf("still lost: %t, %v", lost, err)
		}
	})
}

func TestAWorkerFindsWhatIsLost(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		start(w.t, w.store, configured("w"), h.handle)
		list := w.publish("s", touch("a"), touch("b"))
		for _, sequence := range list {
			w.await("it runs", func() bool { return slices.Contains(h.running(), sequence) })
			h.end(sequence, done)
		}
		w.await("both end", func() bool { return w.finished() == 2 })
		w.exec(`UPDATE {outbox} SET lane_id = NULL, media_id = NULL, state = 'available', outcome = NULL, finished_at = NULL
			WHERE sequence = ?`, list[0])
		w.await("it runs again", func() bool { return h.runs(list[0]) })
		h.end(list[0], done)
		w.await("it ends", func() bool { return w.finished() == 2 })
	})
}

// Until a taken event is written, nobody can tell of which media it is.
func TestATakenEventCountsAsUnfinishedForEveryMediaOfItsEnvironment(t *testing.T) {
	each(t, func(w *world) {
		first := w.publish("s", touch("a"))[0]
		lane := w.take("w").Claimed[0].LaneID
		for before, want := range map[int64]bool{first: false, first + 1: true} {
			if got, err := w.store.Unfinished(w.t.Context(), lane, "other", before); err != nil || got != want {
				w.t.Errorf("before %d: %v, %v; want %v", before, got, err, want)
			}
		}
	})
}

// The CMS commits one event of a media late, and then publishes the next.
func TestALateEventIsFoundWithWhatWasPublishedAfterIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.assign() // the others begin where the last one got to
	late, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	first := w.insert(late, "s", "", touch("a"))
	for range 5 {
		w.publish("s", touch("b"))
		w.assign()
	}
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	next := w.publish("s", touch("a"))[0]
	w.assign()
	for _, sequence := range []int64{first, next} {
		if one[*int64](w, `SELECT lane_id FROM {outbox} WHERE sequence = ?`, sequence) == nil {
			t.Errorf("event %d was not found\n%s", sequence, w.dump())
		}
	}
}

// What a worker leaves for a lane's holder to find isn't passed: the holder may
// give the lane back before it has looked.
func TestWhatIsLeftForAHolderIsNotPassed(t *testing.T) {
	each(t, func(w *world) {
		other := w.another()
		look := func() (taken []*outbox.Event) {
			for range 3 { // what was seen counts as passed from the second look on
				done, err := other.Assign(w.t.Context(), outbox.Look{Worker: "other", Lease: lease, Take: takeFree})
				if err != nil {
					w.t.Fatal(err)
				}
				taken = append(taken, done.Taken...)
			}
			return taken
		}
		first := w.publish("s", touch("a"))
		held := w.take("holder")
		lane := held.Claimed[0].Lane
		left := w.publish("s", touch("b"))
		w.exec(`UPDATE {outbox} SET created_at = created_at + ?`, time.Hour.Microseconds()) // else they are written soon
		if got := look(); len(got) > 0 {
			w.t.Fatalf("took %v of another's lane", sequences(got))
		}
		if got := other.Passed(); got >= first[0] {
			w.t.Errorf("looks begin above %d, and %d is left", got, first[0])
		}
		w.settleEvent(lane, held.Taken[0], done)
		if err := w.store.Release(w.t.Context(), []outbox.Holding{{
			LaneID: lane.LaneID, Token: lane.Token, ReadFrom: first[0], SeenWake: held.Claimed[0].Wake,
		}}, nil); err != nil {
			w.t.Fatal(err)
		}
		later := w.publish("s", touch("b"))
		if diff := cmp.Diff(append(left, later...), sequences(look())); diff != "" {
			w.t.Error(diff)
		}
	})
}

// A holder may be busy with ending, or stand still, and renew its lease.
func TestWhatAHolderDoesNotFindIsWrittenByOthers(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		w.take("holder")
		late := w.publish("s", touch("b"))
		w.exec(`UPDATE {outbox} SET created_at = created_at - ?`, time.Minute.Microseconds())
		if _, err := w.another().Assign(w.t.Context(), outbox.Look{Worker: "other", Lease: lease, Take: takeFree}); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Contains(w.assigned(), late[0]) {
			w.t.Errorf("%v are in their lane, %d isn't", w.assigned(), late[0])
		}
	})
}

// A worker that has looked past what another one had taken must not put later
// events into that one's lane when it died: its heir would run them first.
func TestNothingPassesWhatADeadWorkerHadTaken(t *testing.T) {
	each(t, func(w *world) {
		other := w.another()
		look := func() {
			for range 3 { // what was seen counts as passed from the second look on
				if _, err := other.Assign(w.t.Context(), outbox.Look{Worker: "other", Lease: lease, Take: takeFree}); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		published := w.publish("s", touch("a"))
		old := w.take("dead").Claimed[0].Lane
		look()
		w.lapse(old.LaneID)
		later := w.publish("s", touch("a"))
		look()
		heir := w.takeOver("heir")[0]
		got := sequences(w.read(heir.LaneID))
		if len(got) > 0 && got[0] == later[0] {
			w.t.Errorf("the heir begins with %v, before %v", got, published)
		}
		w.store.Refind(0)
		w.assign()
		if diff := cmp.Diff(append(published, later...), sequences(w.read(heir.LaneID))); diff != "" {
			w.t.Error(diff)
		}
	})
}

// Whoever writes several events does it in their sequence: a settlement may be
// writing some of the same.
func TestEventsThatTakeLongAreWrittenInTheirSequence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	published := append(w.publish("s", touch("a")), w.publish("other", touch("a"))...)
	taken := w.take("w")
	var held []outbox.Holding
	for _, lane := range taken.Claimed {
		held = append(held, outbox.Holding{LaneID: lane.LaneID, Token: lane.Token})
	}
	slices.Reverse(taken.Taken)

	settling, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = settling.Rollback() })
	const lock = `SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE sequence = ? FOR UPDATE SKIP LOCKED) AS locked`
	if _, err := settling.ExecContext(t.Context(), w.db.SQL(lock), published[0]); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- w.store.Write(t.Context(), held, taken.Taken) }()
	w.awaitBlocked("the other waits")
	if one[int](w, lock, published[1]) != 1 {
		t.Error("who waits for an event has written a later one")
	}
	if err := errors.Join(settling.Commit(), <-written); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(published, w.assigned()); diff != "" {
		t.Error(diff)
	}
}

// Its holder has in memory what it writes: the lane needn't be read, and goes on
// taking what comes next. Who is given the lane reads it.
func TestWhatIsWrittenFromMemoryWakesNobody(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		found := w.take("w")
		lane := found.Claimed[0].Lane
		before := w.status(lane.LaneID).Wake
		if err := w.store.Write(w.t.Context(), []outbox.Holding{holdingOf(lane)}, found.Taken); err != nil {
			w.t.Fatal(err)
		}
		if got := w.status(lane.LaneID).Wake; got != before || len(w.assigned()) != 1 {
			w.t.Errorf("the lane was woken %d times, and has %v", got-before, w.assigned())
		}
		if err := w.store.Release(w.t.Context(), []outbox.Holding{holdingOf(lane)}, found.Taken); err != nil {
			w.t.Fatal(err)
		}
		if next := w.claim("next"); len(next) != 1 || len(w.read(next[0].LaneID)) != 1 {
			w.t.Errorf("the next worker gets %v", next)
		}
	})
}
