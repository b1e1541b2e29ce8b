package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// world is one outbox, seen from outside: publishers write to it, and tests
// look at its tables.
type world struct {
	t     testing.TB
	db    *database.DB
	store *outbox.Store
}

// each runs a test on every database.
func each(t *testing.T, test func(w *world)) {
	t.Helper()
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) { test(newWorld(t, db)) })
}

func newWorld(t testing.TB, db *database.DB) *world {
	w := &world{t: t, db: db}
	w.exec(createEffects)
	w.store = w.another()
	return w
}

// another is a second worker's view of the same outbox.
func (w *world) another() *outbox.Store { return outbox.New(w.db, &recorder{db: w.db}) }

const createEffects = `CREATE TABLE {effects} (position integer, sequence bigint, worker text, started bigint)`

// recorder stands for the ledger: it keeps, in the transaction that settles,
// which events were completed, in which order and by whom.
type recorder struct {
	db     *database.DB
	calls  atomic.Int64
	refuse func(*outbox.Settlement) error
}

func (r *recorder) Record(ctx context.Context, tx *sqlx.Tx, settled []*outbox.Settlement, _ map[int64]int64) error {
	r.calls.Add(1)
	for _, st := range settled {
		if r.refuse != nil {
			if err := r.refuse(st); err != nil {
				return err
			}
		}
		if st.Kind != outbox.Complete || st.Outcome == outbox.Superseded {
			continue
		}
		// The same attempt's end comes again where the answer to its commit was lost.
		started := st.Started.UnixNano()
		if _, err := tx.ExecContext(ctx, r.db.SQL(`INSERT INTO {effects} (position, sequence, worker, started)
			SELECT coalesce(max(position), 0) + 1, CAST(? AS bigint), CAST(? AS text), CAST(? AS bigint) FROM {effects}
			HAVING NOT EXISTS (SELECT 1 FROM {effects} WHERE sequence = ? AND started = ?)`),
			st.Event.Sequence, st.Worker, started, st.Event.Sequence, started); err != nil {
			return err
		}
		if st.Event.Type == events.EnvironmentDeletedType {
			if _, err := outbox.Supersede(ctx, tx, r.db.SQL, st.Event.LaneID, st.Event.Sequence); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *recorder) RecordDiscarded(context.Context, *sqlx.Tx, []*outbox.Event, map[int64]bool) error {
	return nil
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), w.db.SQL(query), args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// one reads a single value.
func one[T any](w *world, query string, args ...any) T {
	w.t.Helper()
	var value T
	if err := w.db.GetContext(context.WithoutCancel(w.t.Context()), &value, w.db.SQL(query), args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return value
}

// all reads a column.
func all[T any](w *world, query string, args ...any) []T {
	w.t.Helper()
	values := []T{}
	if err := w.db.SelectContext(context.WithoutCancel(w.t.Context()), &values, w.db.SQL(query), args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return values
}

// touch is an event of one media that mentions these names: a deletion of one,
// a rename between two.
func touch(media string, names ...string) events.Event {
	version := events.NewVersion(time.UnixMicro(1_750_000_000_000_000))
	switch len(names) {
	case 0:
		return events.MediaDeleted{MediaID: media, FileName: "of " + media, Version: version}
	case 1:
		return events.MediaDeleted{MediaID: media, FileName: names[0], Version: version}
	default:
		return events.MediaRenamed{MediaID: media, From: names[0], To: names[1], Version: version}
	}
}

// publish commits events of a service's production in one transaction, and
// returns their sequences.
func (w *world) publish(service string, list ...events.Event) []int64 {
	w.t.Helper()
	return w.publishIn(service, "", list...)
}

func (w *world) publishIn(service, environment string, list ...events.Event) []int64 {
	w.t.Helper()
	sequences := make([]int64, len(list))
	tx, err := w.db.BeginTxx(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer tx.Rollback()
	for i, e := range list {
		sequences[i] = w.insert(tx, service, environment, e)
	}
	if err := tx.Commit(); err != nil {
		w.t.Fatal(err)
	}
	return sequences
}

type inserter interface {
	QueryRowxContext(ctx context.Context, query string, args ...any) *sqlx.Row
}

// insert is the contract's INSERT; within a transaction, the event is visible
// when that commits.
func (w *world) insert(in inserter, service, environment string, e events.Event) int64 {
	w.t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.insertRaw(in, service, environment, e.Type(), string(data))
}

func (w *world) insertRaw(in inserter, service, environment, eventType, data string) int64 {
	w.t.Helper()
	var sequence int64
	if err := in.QueryRowxContext(w.t.Context(), w.db.SQL(`
		INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)
		RETURNING sequence`), uuid.NewString(), eventType, service, environment, data).Scan(&sequence); err != nil {
		w.t.Fatal(err)
	}
	return sequence
}

// want says which lanes have something to read.
func (w *world) want() {
	w.t.Helper()
	if err := w.store.WantAll(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// lease is long enough never to lapse in a test.
const lease = 10 * time.Minute

// claim leases all lanes that have work.
func (w *world) claim(worker string) []outbox.Lane {
	w.t.Helper()
	lanes, err := w.store.Claim(w.t.Context(), worker, 100, lease)
	if err != nil {
		w.t.Fatal(err)
	}
	return lanes
}

// claimOne leases the only lane that has work.
func (w *world) claimOne(worker string) outbox.Lane {
	w.t.Helper()
	w.want()
	lanes := w.claim(worker)
	if len(lanes) != 1 {
		w.t.Fatalf("claimed %d lanes, want 1\n%s", len(lanes), w.dump())
	}
	return lanes[0]
}

// lapse lets the lease of a lane be over.
func (w *world) lapse(laneID int64) {
	w.t.Helper()
	w.exec(`UPDATE {lanes} SET leased_until = 1 WHERE lane_id = ?`, laneID)
}

func (w *world) takeOver(worker string) []outbox.Lane {
	w.t.Helper()
	lanes, err := w.store.TakeOver(w.t.Context(), worker, 100, lease)
	if err != nil {
		w.t.Fatal(err)
	}
	return lanes
}

// read reads a lane from its beginning.
func (w *world) read(laneID int64) []*outbox.Event { return w.readAfter(laneID, 0) }

func (w *world) readAfter(laneID, after int64) []*outbox.Event {
	w.t.Helper()
	found, err := w.store.Read(w.t.Context(), []outbox.Reading{{LaneID: laneID, After: after, UpTo: math.MaxInt64, Limit: 1000}})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// event reads one event of a held lane.
func (w *world) event(laneID, sequence int64) *outbox.Event {
	w.t.Helper()
	found := w.read(laneID)
	at := slices.IndexFunc(found, func(e *outbox.Event) bool { return e.Sequence == sequence })
	if at < 0 {
		w.t.Fatalf("event %d can't be read, only %v can\n%s", sequence, sequences(found), w.dump())
	}
	return found[at]
}

func sequences(found []*outbox.Event) []int64 {
	list := make([]int64, len(found))
	for i, e := range found {
		list[i] = e.Sequence
	}
	return list
}

var (
	done    = outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done}
	trouble = failure.New(failure.Transient, failure.ServerError, "S3 answered 500")
	ruined  = failure.New(failure.Permanent, failure.SourceGone, "the source is gone")
)

func retryIn(delay time.Duration) outbox.Verdict {
	return outbox.Verdict{Kind: outbox.Retry, Failure: trouble, Delay: delay}
}

// settle ends an attempt of an event that a lane's holder runs.
func (w *world) settle(lane outbox.Lane, sequence int64, verdict outbox.Verdict) {
	w.t.Helper()
	w.settleEvent(lane, w.event(lane.LaneID, sequence), verdict)
}

func (w *world) settleEvent(lane outbox.Lane, e *outbox.Event, verdict outbox.Verdict) {
	w.t.Helper()
	if err := w.store.Settle(w.t.Context(), []*outbox.Settlement{settlement(lane, e, verdict)}); err != nil {
		w.t.Fatal(err)
	}
}

func settlement(lane outbox.Lane, e *outbox.Event, verdict outbox.Verdict) *outbox.Settlement {
	return &outbox.Settlement{Event: e, Token: lane.Token, Started: time.Now(), Duration: time.Millisecond,
		Worker: "settler", Verdict: verdict}
}

// park looks events up among the holds, as their lane's holder does.
func (w *world) park(lane outbox.Lane, running []*outbox.Event, waiting ...*outbox.Event) []int64 {
	w.t.Helper()
	parking, err := w.store.Park(w.t.Context(), holdingOf(lane), running, waiting)
	if err != nil {
		w.t.Fatal(err)
	}
	list := []int64{}
	for sequence, parked := range parking.Parked {
		if parked {
			list = append(list, sequence)
		}
	}
	slices.Sort(list)
	return list
}

func holdingOf(lane outbox.Lane) outbox.Holding {
	return outbox.Holding{LaneID: lane.LaneID, Token: lane.Token}
}

// promote lets all delays be over.
func (w *world) promote() {
	w.t.Helper()
	w.exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE next_attempt_at IS NOT NULL`)
	if _, _, err := w.store.Promote(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) status(laneID int64) outbox.Status {
	w.t.Helper()
	found, err := w.store.Statuses(w.t.Context(), []int64{laneID})
	if err != nil || len(found) != 1 {
		w.t.Fatalf("%d statuses: %v", len(found), err)
	}
	return found[0]
}

// state is an event's state, with its outcome or the code of its error.
func (w *world) state(sequence int64) string {
	w.t.Helper()
	return one[string](w, `SELECT trim(state || ' ' || coalesce(outcome, error_code, '')) FROM {outbox} WHERE sequence = ?`, sequence)
}

func (w *world) effects() []int64 {
	w.t.Helper()
	return all[int64](w, `SELECT sequence FROM {effects} ORDER BY position`)
}

func contextWithTimeout(t testing.TB, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), timeout)
}

func ref[T any](value T) *T { return &value }

// series is a query for the numbers up to n, in the column n.
func (w *world) series(n int) string {
	return fmt.Sprintf(`WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %d) SELECT n FROM s`, n)
}

// uuidOf is an expression that makes a UUID of a number.
func (w *world) uuidOf(number string) string {
	text := `'00000000-0000-7000-8000-' || substr('000000000000' || ` + number + `, -12)`
	if w.db.Dialect == database.PostgreSQL {
		return `CAST('00000000-0000-7000-8000-' || lpad(CAST(` + number + ` AS text), 12, '0') AS uuid)`
	}
	return text
}
