package outbox_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// An attempt is kept as it was, whatever follows.
func TestEveryAttemptIsKept(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		refused := failure.New(failure.Transient, failure.Throttled, "slow down\x00\xff").WithRequestID("REQ1")
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Retry, Failure: refused, Delay: time.Hour})
		w.Promote()
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Yield, Failure: failure.New(failure.Interrupted, failure.Canceled, "shutdown")})
		w.Settle(lane, list[0], outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour})
		w.Promote()
		w.Settle(lane, list[0], outboxtest.Done)
		w.Settle(lane, list[1], outboxtest.Done)

		type attempt struct {
			Number    int     `db:"number"`
			Worker    string  `db:"worker"`
			Class     *string `db:"error_class"`
			Code      *string `db:"error_code"`
			Error     *string `db:"error"`
			RequestID *string `db:"aws_request_id"`
		}
		var got []attempt
		if err := w.DB.SelectContext(w.T.Context(), &got, w.DB.SQL(`SELECT number, worker, error_class, error_code, error,
			aws_request_id FROM {attempts} ORDER BY sequence, number`)); err != nil {
			w.T.Fatal(err)
		}
		want := []attempt{
			{1, "settler", ref("transient"), ref("throttled"), ref("slow down\uFFFD\uFFFD"), ref("REQ1")},
			{2, "settler", ref("interrupted"), ref("canceled"), ref("shutdown"), nil},
			{3, "settler", nil, nil, nil, nil},
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			w.T.Error(diff)
		}
		type counts struct {
			State    string  `db:"state"`
			Attempts int     `db:"attempt_count"`
			Worker   *string `db:"worker"`
		}
		var events []counts
		if err := w.DB.SelectContext(w.T.Context(), &events, w.DB.SQL(`
			SELECT state, attempt_count, worker FROM {outbox} ORDER BY sequence`)); err != nil {
			w.T.Fatal(err)
		}
		// A first attempt that succeeds stands in the event's own row.
		if diff := cmp.Diff([]counts{{"completed", 2, nil}, {"completed", 1, ref("settler")}}, events); diff != "" {
			w.T.Error(diff)
		}
	})
}

// The caller doesn't know whether a commit that failed took place.
func TestSettlingTwiceIsSettlingOnce(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		batch := []*outbox.Settlement{
			outboxtest.Settlement(lane, w.Event(lane.LaneID, list[0]), outboxtest.Done),
			outboxtest.Settlement(lane, w.Event(lane.LaneID, list[1]), outboxtest.RetryIn(time.Hour)),
		}
		for range 2 {
			if err := w.Store.Settle(w.T.Context(), batch); err != nil {
				w.T.Fatal(err)
			}
		}
		if n := outboxtest.One[int](w.World, `SELECT sum(attempt_count) FROM {outbox}`); n != 2 {
			w.T.Errorf("%d attempts count", n)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n != 1 {
			w.T.Errorf("%d attempts are kept", n)
		}
		w.Park(lane, nil, w.Event(lane.LaneID, list[2]))
		w.Promote()
		w.Settle(lane, list[1], outboxtest.Done)
		if err := w.Store.Settle(w.T.Context(), batch[1:]); err != nil {
			w.T.Fatal(err)
		}
		w.Settle(lane, list[2], outboxtest.Done)
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {holds}`); n != 0 {
			w.T.Errorf("holds of ended events are left:\n%s", w.Dump())
		}
	})
}

// All that a transaction of settling does is undone together.
func TestWhatTheRecorderRefusesIsNotSettled(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		refusal := errors.New("no")
		store := outbox.New(w.DB, &outboxtest.Recorder{DB: w.DB, Refuse: func(*outbox.Settlement) error { return refusal }})
		err := store.Settle(w.T.Context(), []*outbox.Settlement{outboxtest.Settlement(lane, w.Event(lane.LaneID, list[0]), outboxtest.Done)})
		if !errors.Is(err, refusal) {
			w.T.Fatalf("got %v", err)
		}
		if got := w.State(list[0]); got != "available" {
			w.T.Errorf("the event is %s", got)
		}
	})
}

// Workers that settle, park, mark, want, promote and renew at once must not
// wait for each other in a circle.
func TestNoDeadlocks(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgreSQLURL(t)
	db, err := database.Open(t.Context(), url, database.DefaultSchema)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, db)
	const lanes = 9
	for range 20 {
		for i := range lanes {
			w.Publish(string(rune('A'+i)), outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("b", "x", "y"))
		}
	}
	w.Want()
	leased := w.Claim("w")
	var working sync.WaitGroup
	for worker := range 3 {
		mine := leased[worker*3 : worker*3+3]
		var held []outbox.Holding
		for _, lane := range mine {
			held = append(held, outboxtest.HoldingOf(lane))
		}
		slices.Reverse(held)
		store := w.Another()
		read := func() (found []*outbox.Event) {
			for _, lane := range mine {
				events, err := store.Read(t.Context(), []outbox.Reading{{LaneID: lane.LaneID, UpTo: math.MaxInt64, Limit: 5}})
				if err != nil {
					t.Error(err)
				}
				found = append(found, events...)
			}
			rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
			return found
		}
		working.Go(func() { // what settles
			for range 25 {
				var batch []*outbox.Settlement
				for _, e := range read() {
					if e.Sequence%2 == 0 {
						continue // it waits, and may be parked meanwhile
					}
					lane := mine[slices.IndexFunc(mine, func(l outbox.Lane) bool { return l.LaneID == e.LaneID })]
					verdict := outboxtest.Done
					if rand.IntN(3) == 0 {
						verdict = outboxtest.RetryIn(0)
					}
					batch = append(batch, outboxtest.Settlement(lane, e, verdict))
				}
				if err := store.Settle(t.Context(), batch); err != nil {
					t.Error(err)
				}
			}
		})
		working.Go(func() { // what fetches and renews
			for range 25 {
				found := read()
				if err := store.MarkRunning(t.Context(), held, found); err != nil {
					t.Error(err)
				}
				for _, lane := range mine {
					waiting := slices.DeleteFunc(slices.Clone(found), func(e *outbox.Event) bool {
						return e.LaneID != lane.LaneID || e.Sequence%2 == 1
					})
					if _, err := store.Park(t.Context(), outboxtest.HoldingOf(lane), nil, waiting); err != nil {
						t.Error(err)
					}
				}
				if _, _, err := store.Promote(t.Context()); err != nil {
					t.Error(err)
				}
				w.Publish("A", outboxtest.Touch("c"))
				if err := outboxtest.Want(t.Context(), store); err != nil {
					t.Error(err)
				}
				if _, _, err := store.Renew(t.Context(), held, outboxtest.Lease); err != nil {
					t.Error(err)
				}
			}
		})
	}
	working.Wait()
	// A connection reports its deadlocks, which were run again, when it ends.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	w.DB = dbtest.Open(t, url)
	w.Await("the connections end", func() bool {
		return outboxtest.One[int](w.World, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()`) == 1
	})
	if n := outboxtest.One[int](w.World, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
}
