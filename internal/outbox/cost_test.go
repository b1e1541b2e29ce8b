package outbox_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// Questions that a worker asks again and again read what they find, and not what
// there is. That holds for plans that were made while the tables were empty, too.
func TestLookingReadsNothingThatIsNotDue(t *testing.T) {
	t.Parallel()
	const many, few = 3000, 100
	for name, look := range map[string]func(ctx context.Context, s *outbox.Store) error{
		"due retries": func(ctx context.Context, s *outbox.Store) error {
			_, _, err := s.Promote(ctx)
			return err
		},
		"lapsed leases": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.TakeOver(ctx, "w", 16, outboxtest.Lease)
			return err
		},
		"lanes with work": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Claim(ctx, "w", 16, outboxtest.Lease)
			return err
		},
		"whether lanes wait": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Waiting(ctx)
			return err
		},
		"lanes with something to read": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Scan(ctx)
			return err
		},
		"environments that were created": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.NoteCreations(ctx)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.DB.SetMaxOpenConns(1) // whose statistics are the test's
			w.Publish("first", outboxtest.Touch("a"))
			for range 6 { // PostgreSQL prepares a plan for good at the sixth
				if err := look(t.Context(), w.Store); err != nil {
					t.Fatal(err)
				}
			}
			w.Exec(`INSERT INTO {lanes} (service_id, environment_id, leased_by, leased_until)
				SELECT 'leased-' || i, '', 'other', {now} + 3600000000 FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.Exec(`INSERT INTO {lanes} (service_id, environment_id, ready_at)
				SELECT 'ready-' || i, '', {now} FROM generate_series(1, CAST(? AS integer)) AS i`, few/10)
			w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, parked, next_attempt_at)
				SELECT gen_random_uuid(), 'MediaDeleted', 'leased-' || i, '{}', 1, 'retryable', true, {now} + 3600000000
				FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.Publish("second", outboxtest.Touch("a"))

			before := dbtest.ReadRows(w.T, w.DB)
			if err := look(t.Context(), w.Store); err != nil {
				t.Fatal(err)
			}
			if read := dbtest.ReadRows(w.T, w.DB) - before; read > few {
				t.Errorf("%d rows were read", read)
			}
		})
	}
}

// However much has ended since autovacuum came by last.
func TestReadingFromTheBeginningReadsNothingThatHasEnded(t *testing.T) {
	t.Parallel()
	const many, few = 20_000, 100
	for name, look := range map[string]func(w *world){
		"a scan":            func(w *world) { w.wanted() },
		"a lane":            func(w *world) { w.Read(1) },
		"unfinished events": func(w *world) { w.unfinished(1, "b", math.MaxInt64) },
		"a lane's release": func(w *world) {
			w.Exec(`UPDATE {lanes} SET leased_by = 'w', lease_token = 1 WHERE lane_id = 1`)
			if err := w.Store.Release(w.T.Context(), []outbox.Holding{{LaneID: 1, Token: 1}}); err != nil {
				w.T.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.DB.SetMaxOpenConns(1) // whose statistics are the test's
			w.Publish("first", outboxtest.Touch("a"))
			w.Want()
			w.Exec(`ALTER TABLE {outbox} SET (autovacuum_enabled = false)`)
			w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
				SELECT gen_random_uuid(), 'MediaDeleted', 'first', '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.Exec(`UPDATE {outbox} SET lane_id = 1, state = 'completed', outcome = 'done', finished_at = {now}
				WHERE lane_id IS NULL AND sequence < CAST(? AS bigint)`, many-10)
			w.Exec(`ANALYZE {outbox}`)
			w.Publish("second", outboxtest.Touch("a"))
			// The first readings after that note in the index what they find dead, once
			// nobody may see it any more.
			var read int64
			for range 300 {
				before := dbtest.ReadRows(w.T, w.DB)
				look(w)
				if read = dbtest.ReadRows(w.T, w.DB) - before; read <= few {
					return
				}
			}
			t.Errorf("%d rows were read", read)
		})
	}
}

// However many events came after the plans were made, and however few there were
// when the planner's statistics were.
func TestEachStepReadsItsEventOnly(t *testing.T) {
	t.Parallel()
	const plans, many, few = 10, 3000, 40
	settle := func(verdict outbox.Verdict) func(w *world, lane outbox.Lane, e *outbox.Event) {
		return func(w *world, lane outbox.Lane, e *outbox.Event) { w.SettleEvent(lane, e, verdict) }
	}
	held := func(lane outbox.Lane) []outbox.Holding { return []outbox.Holding{outboxtest.HoldingOf(lane)} }
	mark := func(w *world, lane outbox.Lane, e *outbox.Event) {
		if err := w.Store.MarkRunning(w.T.Context(), held(lane), []*outbox.Event{e}); err != nil {
			w.T.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		does func(w *world, lane outbox.Lane, e *outbox.Event)
	}{
		{"it completes", settle(outboxtest.Done)},
		{"it is to be retried", settle(outboxtest.RetryIn(time.Hour))},
		{"it is marked as running", mark},
		{"it completes after it was marked", func(w *world, lane outbox.Lane, e *outbox.Event) {
			mark(w, lane, e)
			w.SettleEvent(lane, e, outboxtest.Done)
		}},
		{"it holds back others, and lets go of them", func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.Park(lane, []*outbox.Event{e})
			e.Holding = true
			w.SettleEvent(lane, e, outboxtest.Done)
		}},
		{"it is parked", func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.Exec(`INSERT INTO {holds} (lane_id, resource, sequence) VALUES (?, ?, 0)`, lane.LaneID, "m:"+e.Media())
			if got := w.Park(lane, nil, e); len(got) != 1 {
				w.T.Fatalf("parked %v", got)
			}
		}},
		{"it is read", func(w *world, lane outbox.Lane, e *outbox.Event) {
			if _, err := w.Store.Read(w.T.Context(), []outbox.Reading{
				{LaneID: lane.LaneID, After: e.Sequence - 1, UpTo: math.MaxInt64, Limit: 1},
			}); err != nil {
				w.T.Fatal(err)
			}
		}},
		{"its lane is renewed", func(w *world, lane outbox.Lane, _ *outbox.Event) {
			if kept, _, err := w.Store.Renew(w.T.Context(), held(lane), outboxtest.Lease); err != nil || len(kept) != 1 {
				w.T.Fatal(kept, err)
			}
		}},
		{"its lane's status is asked", func(w *world, lane outbox.Lane, _ *outbox.Event) { w.Status(lane.LaneID) }},
		{"its lane is wanted", func(w *world, lane outbox.Lane, _ *outbox.Event) {
			if _, err := w.Store.Want(w.T.Context(), "w", []outbox.Environment{{ServiceID: lane.ServiceID}}); err != nil {
				w.T.Fatal(err)
			}
		}},
	} {
		for _, analyzed := range []int{0, 20, 100, 10_000} {
			t.Run(fmt.Sprintf("%s, of %d analyzed", step.name, analyzed), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, dbtest.PostgreSQL(t))
				w.DB.SetMaxOpenConns(1) // whose statistics are the test's
				if analyzed > 0 {
					w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, outcome, finished_at)
						SELECT gen_random_uuid(), 'MediaDeleted', 'a', '{}', 0, 'completed', 'done', {now}
						FROM generate_series(1, CAST(? AS integer)) AS i`, analyzed)
					w.Exec(`ANALYZE`)
				}
				w.Exec(`INSERT INTO {lanes} (service_id, environment_id, held, ready_at, leased_by, leased_until)
					SELECT 'bulk-' || i, '', true, {now}, 'other', {now} + 3600000000 FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				list := w.PublishMany("a", plans+1)
				lane := w.ClaimOne("w")
				waiting := w.Read(lane.LaneID)
				if diff := cmp.Diff(list, outboxtest.Sequences(waiting)); diff != "" {
					t.Fatal(diff)
				}
				for _, e := range waiting[:plans] {
					step.does(w, lane, e)
				}
				w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
					SELECT gen_random_uuid(), 'MediaDeleted', 'bulk', '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, holding, parked, next_attempt_at)
					SELECT gen_random_uuid(), 'MediaDeleted', 'bulk', '{}', 0, 'retryable', true, true, {now} + 3600000000
					FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				w.Exec(`INSERT INTO {holds} (lane_id, resource, sequence) SELECT 0, 'm:' || i, i
					FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				before := dbtest.ReadRows(w.T, w.DB)
				step.does(w, lane, waiting[plans])
				if read := dbtest.ReadRows(w.T, w.DB) - before; read > few {
					t.Errorf("%d rows were read", read)
				}
			})
		}
	}
}

// However many events wait in a lane, the next of them cost what there is of them.
// That holds for plans that were made while the tables were empty, too.
func TestALongLaneIsReadAFewAtATime(t *testing.T) {
	t.Parallel()
	const many, limit, few = 60_000, 48, 120
	for name, next := range map[string]func(w *world, laneID int64) ([]*outbox.Event, error){
		"a reading": func(w *world, laneID int64) ([]*outbox.Event, error) {
			return w.Store.Read(w.T.Context(), []outbox.Reading{{LaneID: laneID, UpTo: math.MaxInt64, Limit: limit}})
		},
		"unfinished events": func(w *world, laneID int64) ([]*outbox.Event, error) {
			return w.Store.UnfinishedBetween(w.T.Context(), w.DB, laneID, 0, math.MaxInt64, limit)
		},
	} {
		for when, analyzed := range map[string]bool{"analyzed": true, "planned while empty": false} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, dbtest.PostgreSQL(t))
				w.DB.SetMaxOpenConns(1) // whose statistics and plans are the test's
				w.Publish("service-0", outboxtest.Touch("a"))
				lane := w.ClaimOne("w")
				read := func() int {
					found, err := next(w, lane.LaneID)
					if err != nil {
						t.Fatal(err)
					}
					return len(found)
				}
				for range 6 { // PostgreSQL prepares a plan for good at the sixth
					read()
				}
				w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
					SELECT gen_random_uuid(), 'MediaDeleted', 'service-' || i % 200, '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				if analyzed {
					w.Exec(`ANALYZE`)
				}
				before := dbtest.ReadRows(t, w.DB)
				if n := read(); n != limit {
					t.Errorf("%d events, want %d", n, limit)
				}
				if rows := dbtest.ReadRows(t, w.DB) - before; rows > few {
					t.Errorf("%d rows were read for %d events", rows, limit)
				}
			})
		}
	}
}
