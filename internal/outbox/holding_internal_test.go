package outbox

import (
	"context"
	"log/slog"
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
	event := &Event{Sequence: 1, LaneID: 1, Resources: `["m:a"]`, Taken: true}
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
