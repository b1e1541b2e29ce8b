package outbox_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
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
			_, err := s.TakeOver(ctx, "w", 16, lease)
			return err
		},
		"lanes with work": func(ctx context.Context, s *outbox.Store) error {
			_, err := s.Claim(ctx, "w", 16, lease)
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

// However much was published before, is held or has ended, and however many
// transactions are open: a look reads what became visible since the last one.
func TestALookReadsWhatIsNewOnly(t *testing.T) {
	t.Parallel()
	const many, few = 3000, 60
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.db.SetMaxOpenConns(2) // whose statistics are the test's, and a transaction
	fill := func(state string) {
		w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, state, parked, finished_at)
			SELECT gen_random_uuid(), 'MediaDeleted', 'bulk-' || i, '{}', CAST(? AS text), CAST(? AS text) = 'retryable',
				CASE WHEN CAST(? AS text) = 'completed' THEN {now} END
			FROM generate_series(1, CAST(? AS integer)) AS i`, state, state, state, many)
	}
	feed, err := w.store.Feed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := func(want ...int64) {
		t.Helper()
		if got, err := feed.Look(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Fatalf("saw %v (%v), want %v", got, err, want)
		}
	}
	for range 6 { // PostgreSQL prepares a plan for good at the sixth
		look(w.publish("s", touch("a"))...)
	}
	for _, state := range []string{"available", "retryable", "completed", "dead"} {
		fill(state)
	}
	w.exec(`INSERT INTO {lanes} (service_id, environment_id) SELECT 'bulk-' || i, '' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
	for bulk := 0; bulk < 4*many; {
		got, err := feed.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bulk += len(got)
	}
	tx := w.begin()
	late := w.insert(tx, "s", "", touch("a"))
	for range 12 { // with a gap, too
		look(w.publish("s", touch("a"))...)
	}
	w.db.SetMaxOpenConns(2)
	next := w.publish("s", touch("a"))
	before := dbtest.ReadRows(t, w.db)
	look(next...)
	if read := dbtest.ReadRows(t, w.db) - before; read > few {
		t.Errorf("%d rows were read", read)
	}
	w.commit(tx)
	before = dbtest.ReadRows(t, w.db)
	look(late)
	if read := dbtest.ReadRows(t, w.db) - before; read > few {
		t.Errorf("%d rows were read for a late one", read)
	}
}

// However much has ended since autovacuum came by last.
func TestReadingFromTheBeginningReadsNothingThatHasEnded(t *testing.T) {
	t.Parallel()
	const many, few = 20_000, 100
	for name, look := range map[string]func(w *world){
		"a scan":            func(w *world) { w.wanted() },
		"a lane":            func(w *world) { w.read(1) },
		"unfinished events": func(w *world) { w.unfinished(1, "b", math.MaxInt64) },
		"a lane's release": func(w *world) {
			w.exec(`UPDATE {lanes} SET leased_by = 'w', lease_token = 1 WHERE lane_id = 1`)
			if err := w.store.Release(w.t.Context(), []outbox.Holding{{LaneID: 1, Token: 1}}); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.db.SetMaxOpenConns(1) // whose statistics are the test's
			w.publish("first", touch("a"))
			w.want()
			w.exec(`ALTER TABLE {outbox} SET (autovacuum_enabled = false)`)
			w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
				SELECT gen_random_uuid(), 'MediaDeleted', 'first', '{}' FROM generate_series(1, CAST(? AS integer)) AS i`, many)
			w.exec(`UPDATE {outbox} SET lane_id = 1, state = 'completed', outcome = 'done', finished_at = {now}
				WHERE lane_id IS NULL AND sequence < CAST(? AS bigint)`, many-10)
			w.exec(`ANALYZE {outbox}`)
			w.publish("second", touch("a"))
			// The first readings after that note in the index what they find dead, once
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
	held := func(lane outbox.Lane) []outbox.Holding { return []outbox.Holding{holdingOf(lane)} }
	mark := func(w *world, lane outbox.Lane, e *outbox.Event) {
		if err := w.store.MarkRunning(w.t.Context(), held(lane), []*outbox.Event{e}); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		does func(w *world, lane outbox.Lane, e *outbox.Event)
	}{
		{"it completes", settle(done)},
		{"it is to be retried", settle(retryIn(time.Hour))},
		{"it is marked as running", mark},
		{"it completes after it was marked", func(w *world, lane outbox.Lane, e *outbox.Event) {
			mark(w, lane, e)
			w.settleEvent(lane, e, done)
		}},
		{"it holds back others, and lets go of them", func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.park(lane, []*outbox.Event{e})
			e.Holding = true
			w.settleEvent(lane, e, done)
		}},
		{"it is parked", func(w *world, lane outbox.Lane, e *outbox.Event) {
			w.exec(`INSERT INTO {holds} (lane_id, resource, sequence) VALUES (?, ?, 0)`, lane.LaneID, "m:"+e.Media())
			if got := w.park(lane, nil, e); len(got) != 1 {
				w.t.Fatalf("parked %v", got)
			}
		}},
		{"it is read", func(w *world, lane outbox.Lane, e *outbox.Event) {
			if _, err := w.store.Read(w.t.Context(), []outbox.Reading{
				{LaneID: lane.LaneID, After: e.Sequence - 1, UpTo: math.MaxInt64, Limit: 1},
			}); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"its lane is renewed", func(w *world, lane outbox.Lane, _ *outbox.Event) {
			if kept, _, err := w.store.Renew(w.t.Context(), held(lane), lease); err != nil || len(kept) != 1 {
				w.t.Fatal(kept, err)
			}
		}},
		{"its lane's status is asked", func(w *world, lane outbox.Lane, _ *outbox.Event) { w.status(lane.LaneID) }},
		{"its lane is wanted", func(w *world, lane outbox.Lane, _ *outbox.Event) {
			if _, err := w.store.Want(w.t.Context(), "w", []outbox.Environment{{ServiceID: lane.ServiceID}}); err != nil {
				w.t.Fatal(err)
			}
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
				w.exec(`INSERT INTO {lanes} (service_id, environment_id, held, ready_at, leased_by, leased_until)
					SELECT 'bulk-' || i, '', true, {now}, 'other', {now} + 3600000000 FROM generate_series(1, CAST(? AS integer)) AS i`, many)
				list := w.publishMany("a", plans+1)
				lane := w.claimOne("w")
				waiting := w.read(lane.LaneID)
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
