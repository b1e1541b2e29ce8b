package outbox

import (
	"context"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// The answer to a COMMIT may be lost: who isn't told whether an event was
// parked must let go of what it may hold when it ends.
func TestAnEventThatMayHaveBeenParkedLetsGoWhenItEnds(t *testing.T) {
	t.Parallel()
	s, err := NewSubscriber(New(dbtest.SQLite(t), nil), Config{
		Worker: "w", Concurrency: 1, LaneConcurrency: 1, Lease: time.Minute, Poll: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	event := &Event{Sequence: 2, LaneID: 1, Resources: `["m:a"]`}
	s.mu.Lock()
	l := s.hold(t.Context(), Lane{LaneID: 1, Token: 1}, time.Now())
	l.schedule.add(event, true)
	s.mu.Unlock()
	defer l.end(context.Canceled)

	unanswered, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.parkBlocked(unanswered); err == nil {
		t.Fatal("parking didn't fail")
	}
	if st := (&Settlement{Event: event, Verdict: Verdict{Kind: Complete}}); !st.releases() {
		t.Error("its end lets go of nothing")
	}
}
