package outbox

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// The answer to a COMMIT may be lost: who isn't told whether an event was
// parked must let go of what it may hold when it ends.
func TestAnEventThatMayHaveBeenParkedLetsGoWhenItEnds(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	event := &Event{Sequence: 2, LaneID: 1, Resources: `["m:a"]`}
	l.schedule.add(event, true)
	unanswered, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.parkBlocked(unanswered); err == nil {
		t.Fatal("parking didn't fail")
	}
	if st := (&Settlement{Event: event, Verdict: Verdict{Kind: Complete}}); !st.releases() {
		t.Error("its end lets go of nothing")
	}
}

// holding is a worker that holds a lane and does nothing by itself.
func holding(t *testing.T) (*Subscriber, *lane) {
	t.Helper()
	s, err := NewSubscriber(New(dbtest.SQLite(t), nil), Config{
		Worker: "w", Concurrency: 1, LaneConcurrency: 1, Lease: time.Minute, Poll: time.Second,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l := s.hold(t.Context(), Lane{LaneID: 1, Token: 1}, time.Now())
	t.Cleanup(func() { l.end(context.Canceled) })
	return s, l
}

// However a worker comes to have a lane no more: what it had taken of it must
// be found before anything later is put there.
func TestWhatALostLaneHadTakenIsLookedForAgain(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, s *Subscriber, l *lane){
		"another worker took it over": func(_ *testing.T, s *Subscriber, l *lane) { s.lose(l) },
		"an end could not be written": func(t *testing.T, s *Subscriber, l *lane) {
			l.lost = true
			l.cancel(ErrLeaseLost)
			if err := s.giveBack(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"it could not be given back": func(t *testing.T, s *Subscriber, l *lane) {
			l.leaving = true
			unanswered, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.giveBack(unanswered); err == nil {
				t.Error("giving it back didn't fail")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := holding(t)
			s.store.sweep.passed = 9
			lose(t, s, l)
			if len(s.lanes) > 0 || s.store.sweep.passed >= 0 || len(s.committed) == 0 {
				t.Errorf("%d lanes are held, and the next look begins above %d", len(s.lanes), s.store.sweep.passed)
			}
		})
	}
}

// A lane that is used again and again stays leased: an event that waits for a
// lease starts some milliseconds later. It may have ended by the time that the
// worker looks which lanes have nothing to do.
func TestALaneInUseIsKept(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.refill, l.drainedWake = false, l.status.Wake
	event := &Event{Sequence: 1, LaneID: 1, Resources: `["m:a"]`, Taken: true, token: 1}
	s.feed(t.Context(), Assigned{Taken: []*Event{event}}, time.Now())
	l.schedule.start(l.schedule.next(1, 0)[0])
	l.schedule.finish(event.Sequence, false)
	if err := s.giveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.lanes[l.LaneID] != l {
		t.Fatal("it was given back right after its last event")
	}
	l.emptied = time.Now().Add(-2 * linger)
	if err := s.giveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.lanes[l.LaneID] == l {
		t.Error("it is kept though nothing came for long")
	}
}

// A look may have written what comes after an event that it took: whatever else
// becomes of the lane meanwhile, the event must be in memory, which is written
// when the lane is given back.
func TestWhatALookTookIsKeptWithItsLane(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(l *lane){
		"it goes on":               func(*lane) {},
		"it is to be given back":   func(l *lane) { l.leaving = true },
		"its lease may have ended": func(l *lane) { l.cancel(ErrLeaseLost) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := holding(t)
			event := &Event{Sequence: 1, LaneID: l.LaneID, Resources: `["m:a"]`, Taken: true, token: l.Token}
			change(l)
			s.feed(t.Context(), Assigned{Taken: []*Event{event}}, time.Now())
			if got := l.taken(); len(got) != 1 || got[0] != event {
				t.Errorf("the lane has %v", got)
			}
		})
	}
}

// What was taken under one lease isn't for the next, which this worker may have
// got itself: others may have come first.
func TestWhatWasTakenUnderALostLeaseIsFoundAgain(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	s.store.sweep.passed = 9
	event := &Event{Sequence: 5, LaneID: l.LaneID, Resources: `["m:a"]`, Taken: true, token: l.Token}
	heir := s.hold(t.Context(), Lane{LaneID: l.LaneID, Token: l.Token + 1}, time.Now())
	t.Cleanup(func() { heir.end(context.Canceled) })
	s.feed(t.Context(), Assigned{Taken: []*Event{event}}, time.Now())
	if len(heir.taken()) > 0 || s.store.sweep.passed >= event.Sequence {
		t.Errorf("the lane has %v, and the next look begins above %d", heir.taken(), s.store.sweep.passed)
	}
}

// What a look writes into a lane may come after what it takes, which is in
// memory a moment later.
func TestALaneIsNotReadWhileALookMayBringItMore(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.feeding = true
	status := []Status{{LaneID: l.LaneID, Token: l.Token, Wake: 1}}
	if got := s.readings(map[int64]*lane{l.LaneID: l}, status); len(got) > 0 {
		t.Fatal("it is read")
	}
	s.looked(t.Context(), Look{}, Assigned{}, time.Now(), true)
	if len(s.fetching) == 0 {
		t.Error("nobody reads it after the look")
	}
	if got := s.readings(map[int64]*lane{l.LaneID: l}, status); len(got) != 1 {
		t.Error("it isn't read after the look")
	}
}

// Another worker may have a lane whose lease isn't good any more: what this one
// has of it is to be written before what comes after it.
func TestLooksFindWhatIsOnlyInTheMemoryOfALaneThatMayBeLost(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	event := &Event{Sequence: 5, LaneID: l.LaneID, Resources: `["m:a"]`, Taken: true, token: l.Token}
	s.feed(t.Context(), Assigned{Taken: []*Event{event}}, time.Now())
	if got := s.carried(0); !slices.Equal(got, []int64{event.Sequence}) {
		t.Fatalf("carries %v", got)
	}
	l.renewed(time.Now().Add(-time.Second))
	if got := s.carried(0); len(got) > 0 {
		t.Errorf("carries %v", got)
	}
}
