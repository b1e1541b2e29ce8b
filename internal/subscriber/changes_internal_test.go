package subscriber

import (
	"context"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// An event may end while its lane is being read. The reading has not seen that, so
// whatever it brings must heed it.

func event(sequence int64, media string) *outbox.Event {
	return &outbox.Event{Sequence: sequence, LaneID: 1, Resources: `["m:` + media + `"]`}
}

// ends has an event of the lane run and end.
func (l *lane) ends(s *Subscriber, e *outbox.Event, verdict outbox.Verdict) {
	l.schedule.add(e, false)
	started := l.schedule.next(1)
	l.schedule.start(started[0])
	s.unsettled++
	s.finished(&result{lane: l, entry: started[0], settled: outbox.Settlement{Event: e, Verdict: verdict}})
}

var (
	completes = outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done}
	retries   = outbox.Verdict{Kind: outbox.Retry}
)

// takes puts what was read into the lane, which was read from its beginning.
func (l *lane) takes(s *Subscriber, r outbox.Reading, found ...*outbox.Event) {
	r.LaneID = l.LaneID
	if r.Limit == 0 {
		r.Limit = 9
	}
	s.take(found, map[int64]*lane{1: l}, map[int64]outbox.Reading{1: r})
}

func TestWhatIsReadWhileAnEventIsParkedIsLookedUpBeforeItStarts(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.ended = make(map[int64]bool)
	l.ends(s, event(1, "a"), retries)
	l.takes(s, outbox.Reading{}, event(2, "a"))
	if len(l.schedule.pending) != 1 || len(l.schedule.next(1)) > 0 {
		t.Errorf("%d events wait, of which %d may start", len(l.schedule.pending), len(l.schedule.next(1)))
	}
}

// So is what waited already.
func TestWhatWaitsWhileAnEventIsParkedIsLookedUpBeforeItStarts(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.schedule.add(event(1, "a"), false)
	l.schedule.add(event(2, "a"), false)
	l.schedule.add(event(3, "b"), false)
	l.ends(s, event(1, "a"), outbox.Verdict{Kind: outbox.Defer, Behind: []string{outbox.MediaResource("b")}})
	if len(l.schedule.pending) != 2 || len(l.schedule.next(2)) > 0 {
		t.Errorf("%d events wait, of which %d may start", len(l.schedule.pending), len(l.schedule.next(2)))
	}
}

func TestWhatEndedWhileItWasReadIsNotRunAgain(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.ended, l.refill = make(map[int64]bool), false
	l.ends(s, event(1, "a"), completes)
	l.takes(s, outbox.Reading{}, event(1, "a"))
	if len(l.schedule.pending) > 0 {
		t.Error("it waits to run again")
	}
	if !l.refill {
		t.Error("the lane isn't read again: an operator may have replayed it meanwhile")
	}
}

// An event that the worker has not seen is brought by its next look, with all that
// comes before it.
func TestWhatTheFeedHasNotSeenDoesNotStart(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	s.log = &seenLog{high: 5, gaps: []gap{newGap(2, 3, nil)}}
	l.takes(s, outbox.Reading{}, event(1, "a"), event(2, "b"), event(3, "c"), event(5, "d"), event(6, "e"))
	if got := entrySequences(l.schedule.pending); len(got) != 2 || got[0] != 1 || got[1] != 5 {
		t.Errorf("%v wait to start, want 1 and 5", got)
	}
	l.refill = true
	if r := s.readings(map[int64]*lane{1: l}, []outbox.Status{{LaneID: 1, Token: l.Token}})[1]; r.UpTo != 5 {
		t.Errorf("the lane is read up to %d, and the worker has seen up to 5", r.UpTo)
	}
	found := []outbox.Seen{{Sequence: 2, Open: true, Environment: outbox.Environment{ServiceID: "s", EnvironmentID: ""}}}
	l.refill = false
	s.admit(found, 3, false, false)
	if !l.refill || l.cursor != 1 {
		t.Errorf("after a look at 2, the lane is read again: %t, from above %d", l.refill, l.cursor)
	}
}

// A deletion that has completed supersedes earlier events, also where the lane's status was asked for earlier.
func TestACompletedDeletionIsNotForgotten(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	deletion := &outbox.Event{Sequence: 5, LaneID: 1, Type: events.EnvironmentDeletedType, Resources: `["*"]`}
	l.schedule.add(deletion, false)
	running := l.schedule.next(1)
	l.schedule.start(running[0])
	s.unsettled++
	l.schedule.add(event(4, "a"), false)
	s.finished(&result{lane: l, entry: running[0], settled: outbox.Settlement{Event: deletion, Verdict: completes}})
	if len(l.schedule.pending) > 0 {
		t.Errorf("%d events wait", len(l.schedule.pending))
	}
	s.readings(map[int64]*lane{1: l}, []outbox.Status{{LaneID: 1, Token: l.Token, DeletedSequence: 3}})
	if l.status.DeletedSequence != deletion.Sequence {
		t.Errorf("the last deletion is %d, want %d", l.status.DeletedSequence, deletion.Sequence)
	}
}

// A deletion that has begun supersedes earlier events, however the attempt ends.
func TestADeletionThatHasBegunIsNotForgotten(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	deletion := &outbox.Event{Sequence: 5, LaneID: 1, Type: events.EnvironmentDeletedType, Resources: `["*"]`, Emptying: true}
	l.schedule.add(deletion, false)
	running := l.schedule.next(1)
	l.schedule.start(running[0])
	s.unsettled++
	l.schedule.add(event(4, "a"), false)
	s.finished(&result{lane: l, entry: running[0], settled: outbox.Settlement{Event: deletion, Verdict: retries}})
	if len(l.schedule.pending) > 0 || l.status.DeletedSequence != deletion.Sequence {
		t.Errorf("%d events wait; the last deletion is %d", len(l.schedule.pending), l.status.DeletedSequence)
	}
}

// A deletion that did nothing supersedes nothing.
func TestADeletionThatIsSupersededItselfKeepsWhatWaits(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	deletion := &outbox.Event{Sequence: 5, LaneID: 1, Type: events.EnvironmentDeletedType, Resources: `["*"]`}
	l.schedule.add(deletion, false)
	running := l.schedule.next(1)
	l.schedule.start(running[0])
	s.unsettled++
	l.schedule.add(event(4, "a"), false)
	s.finished(&result{lane: l, entry: running[0], settled: outbox.Settlement{Event: deletion,
		Verdict: outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Superseded}}})
	if len(l.schedule.pending) != 1 || l.status.DeletedSequence != 0 {
		t.Errorf("%d events wait; the last deletion is %d", len(l.schedule.pending), l.status.DeletedSequence)
	}
}

func TestWorkUnderAnEarlierLeaseIsCancelled(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	s.hold(t.Context(), outbox.Lane{LaneID: l.LaneID, Token: l.Token + 1}, time.Now())
	again := s.lanes[l.LaneID]
	t.Cleanup(func() { again.end(context.Canceled) })
	if !l.gone() || again.gone() {
		t.Errorf("gone: the earlier %t, the new one %t", l.gone(), again.gone())
	}
	status := []outbox.Status{{LaneID: l.LaneID, Token: l.Token, DeletedSequence: 7}}
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
			db := dbtest.SQLite(t)
			s, l := holdingIn(t, db)
			execute(t, db, `INSERT INTO {lanes} (lane_id, service_id, environment_id, leased_by, leased_until, lease_token)
				VALUES (1, 's', '', 'w', 9000000000000000, 1)`)
			l.lost = lost
			if err := s.releaseAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			var leased bool
			if err := db.GetContext(t.Context(), &leased, db.SQL(`SELECT leased_by IS NOT NULL FROM {lanes}`)); err != nil {
				t.Fatal(err)
			}
			if leased != lost {
				t.Errorf("leased: %t", leased)
			}
		})
	}
}

// Requeued events that were not read yet come before those above the reading
// position.
func TestNothingIsReadPastRequeuedEventsThatWereNot(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]int{"more may be left": 2, "all were read": 3} {
		s, l := holding(t)
		l.cursor, l.refill = 9, false
		l.takes(s, outbox.Reading{After: 9, Limit: most}, event(1, "a"), event(2, "b"), event(10, "c"))
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
	l.ends(s, event(1, "a"), outbox.Verdict{Kind: outbox.Die})
	if !l.refill {
		t.Error("it isn't")
	}
}

// A lane that was woken has something to read.
func TestALaneThatWasWokenIsRead(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	status := func(wake int64) []outbox.Status { return []outbox.Status{{LaneID: 1, Token: l.Token, Wake: wake}} }
	l.refill = false
	s.readings(map[int64]*lane{1: l}, status(7))
	if got := s.readings(map[int64]*lane{1: l}, status(7)); len(got) > 0 {
		t.Error("it is read though nothing woke it")
	}
	if got := s.readings(map[int64]*lane{1: l}, status(8)); len(got) != 1 {
		t.Error("it isn't read though it was woken")
	}
}

// An event that an operator discarded since it was read is not started.
func TestWhatWasDiscardedMeanwhileIsNotStarted(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	s, l := holdingIn(t, db)
	execute(t, db,
		`INSERT INTO {lanes} (lane_id, service_id, environment_id, leased_by, leased_until, lease_token)
			VALUES (1, 's', '', 'w', 9000000000000000, 1)`,
		`INSERT INTO {outbox} (sequence, event_id, type, service_id, data) VALUES
			(1, '00000000-0000-0000-0000-000000000001', 'MediaDeleted', 's', '{}'),
			(2, '00000000-0000-0000-0000-000000000002', 'MediaDeleted', 's', '{}')`,
		`UPDATE {outbox} SET state = 'discarded' WHERE sequence = 1`)
	l.schedule.add(event(1, "a"), true)
	l.schedule.add(event(2, "b"), true)
	if err := s.parkBlocked(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := entrySequences(l.schedule.next(9)); len(got) != 1 || got[0] != 2 {
		t.Errorf("%v may start, want 2 alone", got)
	}
}

// A look tells at once which events no lane can have, whatever else it saw.
func TestALookTellsWhichEventsNoLaneCanHave(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.refill = false
	nameless := s.admit([]outbox.Seen{
		{Sequence: 101, Open: true, Environment: outbox.Environment{ServiceID: "a\x00b", EnvironmentID: ""}},
		{Sequence: 102, Open: true, Wanted: true, Environment: outbox.Environment{ServiceID: "other", EnvironmentID: ""}},
		{Sequence: 103, Open: true, Environment: outbox.Environment{ServiceID: "s", EnvironmentID: "\xff"}},
		{Sequence: 104, Environment: outbox.Environment{ServiceID: "\xff", EnvironmentID: ""}}, // it has ended
	}, maxSequence, false, false)
	if len(nameless) != 2 || nameless[0] != 101 || nameless[1] != 103 {
		t.Errorf("%v are to be ended, want 101 and 103", nameless)
	}
	if len(s.wanted) != 1 || !s.wanted[outbox.Environment{ServiceID: "other", EnvironmentID: ""}] || l.refill {
		t.Errorf("wanted are %v; the lane held is read again: %t", s.wanted, l.refill)
	}
}
