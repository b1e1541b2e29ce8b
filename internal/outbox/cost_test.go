package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// What a worker asks the database again and again reads what it finds, and not
// what there is: plans that were made while the tables were empty included.
func TestLookingReadsNothingThatIsNotDue(t *testing.T) {
	t.Parallel()
	const many, few = 3000, 100
	for name, look := range map[string]func(ctx context.Context, s *outbox.Store) error{
		"due retries": func(ctx context.Context, s *outbox.Store) error {
			_, _, err := s.Promote(ctx)
			return err
		},
		"lapsed leases": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.TakeOver(ctx, "w", 16, lease)
			return err
		},
		"lanes with work": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Claim(ctx, "w", 16, lease)
			return err
		},
		"new events": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Assign(ctx, outbox.Look{Worker: "w", Lease: lease, Take: takeAll,
				Carried: func(int64) []int64 { return []int64{} }})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.db.SetMaxOpenConns(1) // whose statistics are the test's
			w.publish("first", touch("a"))
			for range 6 { // PostgreSQL prepares a plan for good at the sixth
				if err := look(t.Context(), w.store); err != nil {
					t.Fatal(err)
				}
			}
			w.exec(`INSERT INTO {lanes} (service_id, environment_id, leased_by, leased_until)
				SELECT 'leased-' || i, '', 'other', {now} + 3600000000 FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.exec(`INSERT INTO {lanes} (service_id, environment_id, ready_at)
				SELECT 'ready-' || i, '', {now} FROM generate_series(1, CAST(? AS integer)) AS i`, few/10)
			w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, parked, next_attempt_at)
				SELECT gen_random_uuid(), 'MediaDeleted', 'leased-' || i, '{}', 1, 'retryable', true, {now} + 3600000000
				FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.publish("second", touch("a"))

			before := dbtest.ReadRows(w.t, w.db)
			if err := look(t.Context(), w.store); err != nil {
				t.Fatal(err)
			}
			if read := dbtest.ReadRows(w.t, w.db) - before; read > few {
				t.Errorf("%d rows were read", read)
			}
		})
	}
}

// However much has ended since autovacuum came by last.
func TestLookingFromTheBeginningReadsNothingThatHasEnded(t *testing.T) {
	t.Parallel()
	const many, few = 20_000, 100
	for name, look := range map[string]func(w *world){
		"a look":       func(w *world) { w.store.Refind(0); w.take("w") },
		"a look ahead": func(w *world) { w.store.Refind(0); w.ahead(outbox.AssignBatch, nil) },
		"lost events": func(w *world) {
			if _, err := w.store.FindLost(w.t.Context(), func(int64) []int64 { return []int64{} }); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.db.SetMaxOpenConns(1) // whose statistics are the test's
			w.publish("first", touch("a"))
			w.assign()
			w.exec(`ALTER TABLE {outbox} SET (autovacuum_enabled = false)`)
			w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
				SELECT gen_random_uuid(), 'MediaDeleted', 'first', '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.exec(`UPDATE {outbox} SET lane_id = 1, state = 'completed', outcome = 'done', finished_at = {now}
				WHERE lane_id IS NULL AND sequence < CAST(? AS bigint)`, many-10)
			w.exec(`ANALYZE {outbox}`)
			w.publish("second", touch("a"))
			// The first looks after that note in the index what they find dead, once
			// nobody may see it any more.
			var read int64
			for range 300 {
				before := dbtest.ReadRows(w.t, w.db)
				look(w)
				if read = dbtest.ReadRows(w.t, w.db) - before; read <= few {
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
		return func(w *world, lane outbox.Lane, e *outbox.Event) { w.settleEvent(lane, e, verdict) }
	}
	for _, step := range []struct {
		name  string
		taken bool
		does  func(w *world, lane outbox.Lane, e *outbox.Event)
	}{
		{"it completes", false, settle(done)},
		{"it completes, only taken", true, settle(done)},
		{"it is to be retried", false, settle(retryIn(time.Hour))},
		{"it is to be retried, only taken", true, settle(retryIn(time.Hour))},
		{"it is put into its lane", true, func(w *world, lane outbox.Lane, e *outbox.Event) {
			if err := w.store.Write(w.t.Context(), []outbox.Holding{holdingOf(lane)}, []*outbox.Event{e}); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"it is marked as running", false, func(w *world, lane outbox.Lane, e *outbox.Event) {
			if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(lane)}, []*outbox.Event{e}); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"it holds back others, and lets go of them", false, func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.park(lane, []*outbox.Event{e})
			e.Holding = true
			w.settleEvent(lane, e, done)
		}},
	} {
		for _, analyzed := range []int{0, 20, 100, 10_000} {
			t.Run(fmt.Sprintf("%s, of %d analyzed", step.name, analyzed), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, dbtest.PostgreSQL(t))
				w.db.SetMaxOpenConns(1) // whose statistics are the test's
				if analyzed > 0 {
					w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, outcome, finished_at)
						SELECT gen_random_uuid(), 'MediaDeleted', 'a', '{}', 0, 'completed', 'done', {now}
						FROM generate_series(1, CAST(? AS integer)) AS i`, analyzed)
					w.exec(`ANALYZE`)
				}
				list := w.publishMany("a", plans+1)
				var lane outbox.Lane
				var waiting []*outbox.Event
				if step.taken {
					found := w.take("w")
					lane, waiting = found.Claimed[0].Lane, found.Taken
				} else {
					w.assign()
					lane = w.claimOne("w")
					waiting = w.read(lane.LaneID)
				}
				if diff := cmp.Diff(list, sequences(waiting)); diff != "" {
					t.Fatal(diff)
				}
				for _, e := range waiting[:plans] {
					step.does(w, lane, e)
				}
				w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
					SELECT gen_random_uuid(), 'MediaDeleted', 'bulk', '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, state, holding, parked, next_attempt_at)
					SELECT gen_random_uuid(), 'MediaDeleted', 'bulk', '{}', 0, 'retryable', true, true, {now} + 3600000000
					FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				w.exec(`INSERT INTO {holds} (lane_id, resource, sequence) SELECT 0, 'm:' || i, i
					FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				before := dbtest.ReadRows(w.t, w.db)
				step.does(w, lane, waiting[plans])
				if read := dbtest.ReadRows(w.t, w.db) - before; read > few {
					t.Errorf("%d rows were read", read)
				}
			})
		}
	}
}

// Events that are found one by one as they are announced don't keep looks from
// moving on: each look would walk over all that those before it found.
func TestLooksMoveOnWhereEachEventIsAnnounced(t *testing.T) {
	each(t, func(w *world) {
		worker := start(w.t, w.store, configured("w", func(c *outbox.Config) { c.Poll = time.Hour }),
			func(context.Context, *outbox.Delivery) *outbox.Verdict { return &done })
		var published []int64
		w.await("looks begin above events that were found at once", func() bool {
			if w.finished() == len(published) {
				published = append(published, w.publishMany("a", 20)...)
				worker.Wake()
			}
			const first = 100 // until then, the lane is leased and read
			return len(published) > first && w.store.Passed() >= published[first]
		})
	})
}
