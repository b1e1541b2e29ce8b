package subscriber

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// holding is a worker that holds a lane and does nothing by itself.
func holding(t *testing.T) (*Subscriber, *lane) {
	t.Helper()
	return holdingIn(t, dbtest.SQLite(t))
}

func holdingIn(t *testing.T, db *database.DB) (*Subscriber, *lane) {
	t.Helper()
	s := idleSubscriber(t, db)
	s.hold(t.Context(), outbox.Lane{LaneID: 1, Environment: outbox.Environment{ServiceID: "s"}, Token: 1}, time.Now())
	l := s.lanes[1]
	t.Cleanup(func() { l.end(context.Canceled) })
	return s, l
}

// idleSubscriber is a worker that has seen everything and does nothing by itself.
func idleSubscriber(t *testing.T, db *database.DB) *Subscriber {
	t.Helper()
	s, err := New(outbox.New(db, nil), Config{
		Worker: "w", Concurrency: 1, LaneConcurrency: 1, Lease: time.Minute, Poll: time.Second,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.log = &seenLog{high: 100}
	return s
}

func execute(t *testing.T, db *database.DB, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := db.ExecContext(t.Context(), db.SQL(query)); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// The answer to a COMMIT may be lost. An event that may have been parked must let
// go of what it may hold when it ends.
func TestAnEventThatMayHaveBeenParkedLetsGoWhenItEnds(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	event := event(2, "a")
	l.schedule.add(event, true)
	unanswered, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.parkBlocked(unanswered); err == nil {
		t.Fatal("parking didn't fail")
	}
	if st := (&outbox.Settlement{Event: event, Verdict: outbox.Verdict{Kind: outbox.Complete}}); !st.Releases() {
		t.Error("its end lets go of nothing")
	}
}

// A lane that is used again and again stays leased: an event that waits for a
// lease starts some milliseconds later. Its last event may have ended by the time
// that the worker looks which lanes have nothing to do.
func TestALaneInUseIsKept(t *testing.T) {
	t.Parallel()
	s, l := holding(t)
	l.refill = false
	l.schedule.add(event(1, "a"), false)
	l.schedule.start(l.schedule.next(1)[0])
	if err := s.giveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.schedule.finish(1, true, nil)
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

// A lane that is given back tells its next holder where to begin. Below that must
// be nothing that this worker has not seen yet, or has only in its memory.
func TestALaneIsGivenBackBelowAllThatIsStillToRun(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(l *lane, log *seenLog)
		want   int64
	}{
		"all was run":                     {func(*lane, *seenLog) {}, 50},
		"an event waits":                  {func(l *lane, _ *seenLog) { l.schedule.add(event(30, "a"), false) }, 29},
		"an event may still commit":       {func(_ *lane, log *seenLog) { log.gaps = []gap{newGap(20, 21, nil)} }, 19},
		"a transaction was open at first": {func(_ *lane, log *seenLog) { log.before = []string{"1/1"} }, 10},
		"nothing above where it began":    {func(_ *lane, log *seenLog) { log.gaps = []gap{newGap(5, 5, nil)} }, 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := holding(t)
			l.ReadFrom, l.cursor = 10, 50
			test.change(l, s.log)
			if got := l.holding(s.log).ReadFrom; got != test.want {
				t.Errorf("the next holder reads from above %d, want %d", got, test.want)
			}
		})
	}
}
