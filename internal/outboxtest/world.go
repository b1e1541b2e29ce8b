// Package outboxtest is an outbox as tests see it: publishers write to it, lanes
// are worked in step by step, and the tables are looked at.
package outboxtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
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

// World is one outbox.
type World struct {
	T     testing.TB
	DB    *database.DB
	Store *outbox.Store
}

// New is the outbox of a database in which nothing was published.
func New(t testing.TB, db *database.DB) *World {
	w := &World{T: t, DB: db}
	w.Exec(createEffects)
	w.Store = w.Another()
	return w
}

// Each runs a test on every database.
func Each(t *testing.T, test func(w *World)) {
	t.Helper()
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) { test(New(t, db)) })
}

// Another is a second worker's view of the same outbox.
func (w *World) Another() *outbox.Store { return outbox.New(w.DB, &Recorder{DB: w.DB}) }

const createEffects = `CREATE TABLE {effects} (position integer, sequence bigint, worker text, started bigint)`

// Recorder stands for the ledger: it keeps, in the transaction that settles,
// which events were completed, in which order and by whom.
type Recorder struct {
	DB *database.DB
	// Calls counts how often it was told of settlements.
	Calls atomic.Int64
	// Refuse, if any, tells which settlements can't be recorded, and why.
	Refuse func(*outbox.Settlement) error
}

// Record keeps what was completed.
func (r *Recorder) Record(ctx context.Context, tx *sqlx.Tx, settled []*outbox.Settlement, _ map[int64]int64) error {
	r.Calls.Add(1)
	for _, st := range settled {
		if r.Refuse != nil {
			if err := r.Refuse(st); err != nil {
				return err
			}
		}
		if st.Kind != outbox.Complete || st.Outcome == outbox.Superseded {
			continue
		}
		// The same attempt's end comes again where the answer to its commit was lost.
		started := st.Started.UnixNano()
		if _, err := tx.ExecContext(ctx, r.DB.SQL(`INSERT INTO {effects} (position, sequence, worker, started)
			SELECT coalesce(max(position), 0) + 1, CAST(? AS bigint), CAST(? AS text), CAST(? AS bigint) FROM {effects}
			HAVING NOT EXISTS (SELECT 1 FROM {effects} WHERE sequence = ? AND started = ?)`),
			st.Event.Sequence, st.Worker, started, st.Event.Sequence, started); err != nil {
			return err
		}
		if st.Event.Type == events.EnvironmentDeletedType {
			if _, err := outbox.Supersede(ctx, tx, r.DB.SQL, st.Event.LaneID, st.Event.Sequence); err != nil {
				return err
			}
		}
	}
	return nil
}

// RecordDiscarded keeps nothing.
func (r *Recorder) RecordDiscarded(context.Context, *sqlx.Tx, []*outbox.Event, map[int64]bool) error {
	return nil
}

// Exec runs a statement.
func (w *World) Exec(query string, args ...any) {
	w.T.Helper()
	if _, err := w.DB.ExecContext(w.T.Context(), w.DB.SQL(query), args...); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
}

// One reads a single value.
func One[T any](w *World, query string, args ...any) T {
	w.T.Helper()
	var value T
	if err := w.DB.GetContext(context.WithoutCancel(w.T.Context()), &value, w.DB.SQL(query), args...); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
	return value
}

// All reads a column.
func All[T any](w *World, query string, args ...any) []T {
	w.T.Helper()
	values := []T{}
	if err := w.DB.SelectContext(context.WithoutCancel(w.T.Context()), &values, w.DB.SQL(query), args...); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
	return values
}

// Touch is an event of one media that mentions these names: a deletion of one,
// a rename between two.
func Touch(media string, names ...string) events.Event {
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

// Publish commits events of a service's production in one transaction, and
// returns their sequences.
func (w *World) Publish(service string, list ...events.Event) []int64 {
	w.T.Helper()
	return w.PublishIn(service, "", list...)
}

// PublishIn is Publish to an environment of the service.
func (w *World) PublishIn(service, environment string, list ...events.Event) []int64 {
	w.T.Helper()
	sequences := make([]int64, len(list))
	tx, err := w.DB.BeginTxx(w.T.Context(), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	defer tx.Rollback()
	for i, e := range list {
		sequences[i] = w.Insert(tx, service, environment, e)
	}
	if err := tx.Commit(); err != nil {
		w.T.Fatal(err)
	}
	return sequences
}

type inserter interface {
	QueryRowxContext(ctx context.Context, query string, args ...any) *sqlx.Row
}

// Insert is the contract's INSERT; within a transaction, the event is visible
// when that commits.
func (w *World) Insert(in inserter, service, environment string, e events.Event) int64 {
	w.T.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		w.T.Fatal(err)
	}
	return w.InsertRaw(in, service, environment, e.Type(), string(data))
}

// InsertRaw publishes whatever the caller says.
func (w *World) InsertRaw(in inserter, service, environment, eventType, data string) int64 {
	w.T.Helper()
	var sequence int64
	if err := in.QueryRowxContext(w.T.Context(), w.DB.SQL(`
		INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)
		RETURNING sequence`), uuid.NewString(), eventType, service, environment, data).Scan(&sequence); err != nil {
		w.T.Fatal(err)
	}
	return sequence
}

// Want says which lanes have something to read.
func (w *World) Want() {
	w.T.Helper()
	if err := Want(w.T.Context(), w.Store); err != nil {
		w.T.Fatal(err)
	}
}

// Want says which lanes have something to read, as a worker does that has just
// begun.
func Want(ctx context.Context, store *outbox.Store) error {
	if _, err := store.NoteCreations(ctx); err != nil {
		return err
	}
	found, err := store.Scan(ctx)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(e outbox.Environment) bool { return !e.HasLane() })
	_, err = store.Want(ctx, "", found)
	return err
}

// Lease is long enough never to lapse in a test.
const Lease = 10 * time.Minute

// Claim leases all lanes that have work.
func (w *World) Claim(worker string) []outbox.Lane {
	w.T.Helper()
	lanes, err := w.Store.Claim(w.T.Context(), worker, 100, Lease)
	if err != nil {
		w.T.Fatal(err)
	}
	return lanes
}

// ClaimOne leases the only lane that has work.
func (w *World) ClaimOne(worker string) outbox.Lane {
	w.T.Helper()
	w.Want()
	lanes := w.Claim(worker)
	if len(lanes) != 1 {
		w.T.Fatalf("claimed %d lanes, want 1\n%s", len(lanes), w.Dump())
	}
	return lanes[0]
}

// Lapse lets the lease of a lane be over.
func (w *World) Lapse(laneID int64) {
	w.T.Helper()
	w.Exec(`UPDATE {lanes} SET leased_until = 1 WHERE lane_id = ?`, laneID)
}

// TakeOver leases the lanes whose lease is over.
func (w *World) TakeOver(worker string) []outbox.Lane {
	w.T.Helper()
	lanes, err := w.Store.TakeOver(w.T.Context(), worker, 100, Lease)
	if err != nil {
		w.T.Fatal(err)
	}
	return lanes
}

// Read reads a lane from its beginning.
func (w *World) Read(laneID int64) []*outbox.Event { return w.ReadAfter(laneID, 0) }

// ReadAfter reads a lane from above a sequence.
func (w *World) ReadAfter(laneID, after int64) []*outbox.Event {
	w.T.Helper()
	found, err := w.Store.Read(w.T.Context(), []outbox.Reading{{LaneID: laneID, After: after, UpTo: math.MaxInt64, Limit: 1000}})
	if err != nil {
		w.T.Fatal(err)
	}
	return found
}

// Event reads one event of a held lane.
func (w *World) Event(laneID, sequence int64) *outbox.Event {
	w.T.Helper()
	found := w.Read(laneID)
	at := slices.IndexFunc(found, func(e *outbox.Event) bool { return e.Sequence == sequence })
	if at < 0 {
		w.T.Fatalf("event %d can't be read, only %v can\n%s", sequence, Sequences(found), w.Dump())
	}
	return found[at]
}

// Sequences are those of events.
func Sequences(found []*outbox.Event) []int64 {
	list := make([]int64, len(found))
	for i, e := range found {
		list[i] = e.Sequence
	}
	return list
}

// How attempts may end, and why.
var (
	Done    = outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done}
	Trouble = failure.New(failure.Transient, failure.ServerError, "S3 answered 500")
	Ruined  = failure.New(failure.Permanent, failure.SourceGone, "the source is gone")
)

// RetryIn is the end of an attempt that comes to nothing.
func RetryIn(delay time.Duration) outbox.Verdict {
	return outbox.Verdict{Kind: outbox.Retry, Failure: Trouble, Delay: delay}
}

// Settle ends an attempt of an event that a lane's holder runs.
func (w *World) Settle(lane outbox.Lane, sequence int64, verdict outbox.Verdict) {
	w.T.Helper()
	w.SettleEvent(lane, w.Event(lane.LaneID, sequence), verdict)
}

// SettleEvent ends an attempt of an event that was read before.
func (w *World) SettleEvent(lane outbox.Lane, e *outbox.Event, verdict outbox.Verdict) {
	w.T.Helper()
	if err := w.Store.Settle(w.T.Context(), []*outbox.Settlement{Settlement(lane, e, verdict)}); err != nil {
		w.T.Fatal(err)
	}
}

// Settlement is what an attempt of an event leaves behind.
func Settlement(lane outbox.Lane, e *outbox.Event, verdict outbox.Verdict) *outbox.Settlement {
	return &outbox.Settlement{Event: e, Token: lane.Token, Started: time.Now(), Duration: time.Millisecond,
		Worker: "settler", Verdict: verdict}
}

// Park looks events up among the holds, as their lane's holder does, and returns
// those that left the window.
func (w *World) Park(lane outbox.Lane, running []*outbox.Event, waiting ...*outbox.Event) []int64 {
	w.T.Helper()
	left, err := w.Store.Park(w.T.Context(), HoldingOf(lane), running, waiting)
	if err != nil {
		w.T.Fatal(err)
	}
	list := slices.AppendSeq([]int64{}, maps.Keys(left))
	slices.Sort(list)
	return list
}

// HoldingOf names a lane for its holder.
func HoldingOf(lane outbox.Lane) outbox.Holding {
	return outbox.Holding{LaneID: lane.LaneID, Token: lane.Token}
}

// Promote lets all delays be over.
func (w *World) Promote() {
	w.T.Helper()
	w.Exec(`UPDATE {outbox} SET next_attempt_at = 1 WHERE next_attempt_at IS NOT NULL`)
	if _, _, err := w.Store.Promote(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
}

// Status is what a holder knows of its lane.
func (w *World) Status(laneID int64) outbox.Status {
	w.T.Helper()
	found, err := w.Store.Statuses(w.T.Context(), []int64{laneID})
	if err != nil || len(found) != 1 {
		w.T.Fatalf("%d statuses: %v", len(found), err)
	}
	return found[0]
}

// State is an event's state, with its outcome or the code of its error.
func (w *World) State(sequence int64) string {
	w.T.Helper()
	return One[string](w, `SELECT trim(state || ' ' || coalesce(outcome, error_code, '')) FROM {outbox} WHERE sequence = ?`, sequence)
}

// Effects are the sequences of the events that were completed, in order.
func (w *World) Effects() []int64 {
	w.T.Helper()
	return All[int64](w, `SELECT sequence FROM {effects} ORDER BY position`)
}

// Series is a query for the numbers up to n, in the column n.
func (w *World) Series(n int) string {
	return fmt.Sprintf(`WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %d) SELECT n FROM s`, n)
}

// UUIDOf is an expression that makes a UUID of a number.
func (w *World) UUIDOf(number string) string {
	text := `'00000000-0000-7000-8000-' || substr('000000000000' || ` + number + `, -12)`
	if w.DB.Dialect == database.PostgreSQL {
		return `CAST('00000000-0000-7000-8000-' || lpad(CAST(` + number + ` AS text), 12, '0') AS uuid)`
	}
	return text
}

// Begin opens a transaction of the CMS.
func (w *World) Begin() *sqlx.Tx {
	w.T.Helper()
	tx, err := w.DB.BeginTxx(w.T.Context(), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = tx.Rollback() }) // it may have ended
	return tx
}

// Commit ends a transaction.
func (w *World) Commit(tx *sqlx.Tx) {
	w.T.Helper()
	if err := tx.Commit(); err != nil {
		w.T.Fatal(err)
	}
}

// PublishMany publishes n events of a service, each of a media of its own.
func (w *World) PublishMany(service string, n int) []int64 {
	w.T.Helper()
	list := make([]events.Event, n)
	for i := range list {
		list[i] = Touch(strconv.Itoa(i))
	}
	return w.Publish(service, list...)
}

// PublishEnded publishes an event that is discarded in the same transaction.
func (w *World) PublishEnded(service string, e events.Event) int64 {
	w.T.Helper()
	tx := w.Begin()
	sequence := w.Insert(tx, service, "", e)
	if _, err := tx.ExecContext(w.T.Context(), w.DB.SQL(`
		UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`), sequence); err != nil {
		w.T.Fatal(err)
	}
	w.Commit(tx)
	return sequence
}

// CheckOrder holds the order of effects against the sequences of those that
// share a resource.
func CheckOrder(t testing.TB, order []int64, shared map[int64][]string) {
	t.Helper()
	last := make(map[string]int64)
	for _, sequence := range order {
		for _, resource := range shared[sequence] {
			if last[resource] > sequence {
				t.Errorf("%d took effect after %d, with which it shares %s", sequence, last[resource], resource)
			}
			last[resource] = max(last[resource], sequence)
		}
	}
}
