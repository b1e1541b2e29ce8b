package outbox

import (
	"context"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
)

// What ends while a lane is being read, or while a look is under way that may
// bring it something, was not seen by either: whatever they bring must heed it.

func event(sequence int64, media string) *Event {
	return &Event{Sequence: sequence, LaneID: 1, Resources: `["m:` + media + `"]`, Taken: true, token: 1}
}

// ends has an event of the lane run and end.
func (l *lane) ends(s *Subscriber, e *Event, kind Kind) {
	l.schedule.add(e, false)
	started := l.schedule.next(1, 0)
	l.schedule.start(started[0])
	s.unsettled++
	s.finished(&result{lane: l, entry: started[0], settled: Settlement{Event: e, Verdict: Verdict{Kind: kind, Outcome: Done}}})
}

func TestWhatIsReadWhileAnEventIsParkedIsLookedUpBeforeItStarts(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.ended = make(map[int64]bool)
	l.ends(s, event(1, "a"), Retry)
	s.take([]*Event{event(2, "a")}, map[int64]*reading{1: {lane: l, Reading: Reading{LaneID: 1, Limit: 9}}})
	if len(l.schedule.pending) != 1 || len(l.schedule.next(1, 0)) > 0 {
		t.Errorf("%d events wait, of which %d may start", len(l.schedule.pending), len(l.schedule.next(1, 0)))
	}
}

func TestWhatEndedWhileItWasReadIsNotRunAgain(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.ended = make(map[int64]bool)
	l.ends(s, event(1, "a"), Complete)
	s.take([]*Event{event(1, "a")}, map[int64]*reading{1: {lane: l, Reading: Reading{LaneID: 1, Limit: 9}}})
	if len(l.schedule.pending) > 0 {
		t.Error("it waits to run again")
	}
}

func TestWhatALookTookWhileAnEventWasParkedIsLookedUpBeforeItStarts(t *testing.T) {
	t.Parallel()
	for name, park := range map[string]func(t *testing.T, s *Subscriber, l *lane){
		"to be retried": func(_ *testing.T, s *Subscriber, l *lane) { l.ends(s, event(1, "a"), Retry) },
		"behind a parked one": func(t *testing.T, s *Subscriber, l *lane) {
			ctx := t.Context()
			for _, query := range []string{
				`INSERT INTO {lanes} (lane_id, service_id, environment_id, leased_by, leased_until, lease_token)
					VALUES (1, 's', '', 'w', 9000000000000000, 1)`,
				`INSERT INTO {outbox} (sequence, event_id, type, service_id, data, lane_id, state, holding)
					VALUES (0, '00000000-0000-0000-0000-000000000000', 'MediaDeleted', 's', '{}', 1, 'retryable', true),
					(1, '00000000-0000-0000-0000-000000000001', 'MediaDeleted', 's', '{}', 1, 'available', false)`,
				`INSERT INTO {holds} (lane_id, resource, sequence) VALUES (1, 'm:a', 0)`,
			} {
				if _, err := s.store.db.ExecContext(ctx, s.store.db.SQL(query)); err != nil {
					t.Fatal(err)
				}
			}
			l.schedule.add(event(1, "a"), true)
			if err := s.parkBlocked(ctx); err != nil {
				t.Fatal(err)
			}
			if len(l.schedule.pending) > 0 {
				t.Fatal("it isn't parked")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := holding(t)
			if _, ok := s.look(time.Now()); !ok {
				t.Fatal("no look is due")
			}
			park(t, s, l)
			s.feed(t.Context(), Assigned{Taken: []*Event{event(2, "a")}}, time.Now())
			if len(l.schedule.pending) != 1 || len(l.schedule.next(1, 0)) > 0 {
				t.Errorf("%d events wait, of which %d may start", len(l.schedule.pending), len(l.schedule.next(1, 0)))
			}
		})
	}
}

// What was published before a deletion that has completed is superseded, also
// where the lane's status was asked for earlier; and what of it was only in
// memory is found again, to be ended so.
func TestACompletedDeletionIsNotForgotten(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	s.store.sweep.passed = 9
	deletion := &Event{Sequence: 5, LaneID: 1, Type: events.EnvironmentDeletedType, Resources: `["*"]`}
	l.schedule.add(deletion, false)
	running := l.schedule.next(1, 0)
	l.schedule.start(running[0])
	s.unsettled++
	l.schedule.add(event(4, "a"), false)
	s.finished(&result{lane: l, entry: running[0], settled: Settlement{Event: deletion, Verdict: Verdict{Kind: Complete, Outcome: Done}}})
	if len(l.schedule.pending) > 0 || s.store.sweep.passed >= 4 {
		t.Errorf("%d events wait, and the next look begins above %d", len(l.schedule.pending), s.store.sweep.passed)
	}
	s.readings(map[int64]*lane{1: l}, []Status{{LaneID: 1, Token: l.Token, DeletedSequence: 3}})
	if l.status.DeletedSequence != deletion.Sequence {
		t.Errorf("the last deletion is %d, want %d", l.status.DeletedSequence, deletion.Sequence)
	}
}

// What was published before a deletion that has begun, and is tried again, doesn't
// start meanwhile, whatever way it comes into memory.
func TestADeletionThatHasBegunIsNotForgotten(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	s.store.sweep.passed = 9
	deletion := &Event{Sequence: 5, LaneID: 1, Type: events.EnvironmentDeletedType, Resources: `["*"]`}
	attempt := func(kind Kind, meanwhile func()) {
		l.schedule.add(deletion, false)
		running := l.schedule.next(1, 0)
		l.schedule.start(running[0])
		s.unsettled++
		meanwhile()
		s.finished(&result{lane: l, entry: running[0], settled: Settlement{Event: deletion, Verdict: Verdict{Kind: kind}}})
	}
	none := func(how string, lowest int64) {
		t.Helper()
		if len(l.schedule.pending) > 0 || s.store.sweep.passed >= lowest {
			t.Errorf("%s: %d events wait, and the next look begins above %d", how, len(l.schedule.pending), s.store.sweep.passed)
		}
		s.store.sweep.passed = 9
	}
	deletion.Emptying = true
	attempt(Retry, func() {
		l.schedule.add(event(4, "a"), false)
		l.ended = make(map[int64]bool) // the lane's status is asked for, and then its events
	})
	none("what waited", 4)
	s.readings(map[int64]*lane{1: l}, []Status{{LaneID: 1, Token: l.Token}})
	l.refill = false
	s.take([]*Event{event(3, "b")}, map[int64]*reading{1: {lane: l, Reading: Reading{LaneID: 1, Limit: 9}}})
	none("what was read before", 10)
	if !l.refill {
		t.Error("what was read before isn't read again")
	}
	s.feed(t.Context(), Assigned{Taken: []*Event{event(2, "c")}}, time.Now())
	none("what was taken before", 2)

	// It dies, and what was kept from starting may start.
	deletion.Emptying = false
	begun := l.status
	attempt(Die, func() { l.ended = make(map[int64]bool) })
	s.readings(map[int64]*lane{1: l}, []Status{begun})
	s.take([]*Event{event(3, "b")}, map[int64]*reading{1: {lane: l, Reading: Reading{LaneID: 1, Limit: 9}}})
	if len(l.schedule.pending) != 1 {
		t.Error("what a dead deletion has kept from starting still doesn't")
	}
}

// Events that wait find copies that were opened since they were read.
func TestASnapshotIsNoticedByWhatWaits(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	waits := event(2, "a")
	l.schedule.add(waits, false)
	s.readings(map[int64]*lane{1: l}, []Status{{LaneID: 1, Token: l.Token, SnapshotSequence: 1}})
	if !waits.Copying {
		t.Error("it would not look for owed copies")
	}
}

func TestWorkUnderAnEarlierLeaseIsCancelled(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	again := s.hold(t.Context(), Lane{LaneID: l.LaneID, Token: l.Token + 1}, time.Now())
	t.Cleanup(func() { again.end(context.Canceled) })
	if !l.gone() || again.gone() {
		t.Errorf("gone: the earlier %t, the new one %t", l.gone(), again.gone())
	}
	status := []Status{{LaneID: l.LaneID, Token: l.Token, DeletedSequence: 7}}
	if s.readings(map[int64]*lane{1: again}, status); again.status.DeletedSequence == 7 {
		t.Error("what was asked under the earlier lease is taken for the new one's")
	}
}

// Nobody else would look for an event whose end could not be written: its lane
// must lapse, also where the worker ends.
func TestALaneThatIsLostIsNotGivenBackAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"lost": true, "not lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := holding(t)
			if _, err := s.store.db.ExecContext(t.Context(), s.store.db.SQL(`
				INSERT INTO {lanes} (lane_id, service_id, environment_id, leased_by, leased_until, lease_token)
				VALUES (1, 's', '', 'w', 9000000000000000, 1)`)); err != nil {
				t.Fatal(err)
			}
			l.lost = lost
			if err := s.releaseAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			var leased bool
			if err := s.store.db.GetContext(t.Context(), &leased, s.store.db.SQL(`SELECT leased_by IS NOT NULL FROM {lanes}`)); err != nil {
				t.Fatal(err)
			}
			if leased != lost {
				t.Errorf("leased: %t", leased)
			}
		})
	}
}

// A Peek that is followed by an ordinary look, and a transaction that is run
// again, must not have used up the room.
func TestALookThatIsTriedAgainHasAllItsRoom(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.refill, l.drainedWake = false, 0
	take := s.taker(1)
	for range 2 {
		takes := take()
		found := &LaneState{Lane: l.Lane}
		if !takes(found) || takes(found) {
			t.Error("there isn't room for one event")
		}
	}
}

// What must be looked up before an event of a lane starts keeps every worker from
// taking its events past the database.
func TestALaneOfWhichSomethingMustBeLookedUpIsNotTaken(t *testing.T) {
	t.Parallel()
	sequence := int64(1)
	for name, l := range map[string]LaneState{
		"held":                         {Held: true},
		"waiting for a snapshot":       {Gate: &sequence},
		"with a deletion that began":   {Emptying: &sequence},
		"with parked events":           {Holds: true},
		"with copies":                  {Copying: true},
		"of which a worker has lapsed": {Lane: Lane{LapseCount: 1}},
	} {
		l.Idle = true
		if l.Free() || l.Current(l.Token, l.Wake) {
			t.Errorf("a lane %s: free %t, current %t", name, l.Free(), l.Current(l.Token, l.Wake))
		}
	}
	if l := (&LaneState{Idle: true}); !l.Free() || !l.Current(0, 0) {
		t.Error("an idle lane can't be taken")
	}
}

// Whose lane was taken over, as a look learns, lets go of all that it has of it:
// the next look finds that again, instead of what comes after it alone.
func TestALaneThatALookFindsToBeLostIsLetGo(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]int64{"lost": 1, "leased again since": 0} {
		s, l := holding(t)
		s.store.sweep.passed = 9
		l.schedule.add(event(4, "a"), false)
		began := time.Now()
		s.looked(t.Context(), Look{}, Assigned{Lost: []Holding{{LaneID: 1, Token: token}}, More: true}, began, true)
		if lost := l.Token == token; (s.lanes[1] == nil) != lost || (l.ctx.Err() != nil) != lost || (s.store.sweep.passed < 4) != lost {
			t.Errorf("%s: it has the lane: %t (%v), and the next look begins above %d",
				name, s.lanes[1] != nil, l.ctx.Err(), s.store.sweep.passed)
		}
		if carried := s.carried(0); len(carried) > 0 && l.Token == token {
			t.Errorf("%s: it carries %v", name, carried)
		}
	}
}

// What was requeued, but not read yet, comes before what is above the reading
// position.
func TestNothingIsReadPastRequeuedEventsThatWereNot(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]int{"more may be left": 2, "all were read": 3} {
		s, l := holding(t)
		l.cursor, l.refill = 9, false
		s.take([]*Event{event(1, "a"), event(2, "b"), event(10, "c")}, map[int64]*reading{1: {
			lane: l, Reading: Reading{LaneID: 1, After: 9, Limit: most},
		}})
		want, cursor := 3, int64(10)
		if most == 2 {
			want, cursor = 2, 9
		}
		if len(l.schedule.pending) != want || l.cursor != cursor || l.refill != (most == 2) {
			t.Errorf("%s: %d events wait, read up to %d, more to read: %t", name, len(l.schedule.pending), l.cursor, l.refill)
		}
	}
}

// An operator may have replayed it before its worker noted its end.
func TestALaneIsReadAgainAfterAnEventDied(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.refill = false
	l.ends(s, event(1, "a"), Die)
	if !l.refill {
		t.Error("it isn't")
	}
}
