// Package environment copies and deletes the media of whole environments.
//
// A new environment has the media of its source as of its event. The snapshot
// notes them as items of a copy, without S3; the items are then copied as a
// job of its own. A media that has an unfinished earlier event, or is still to be
// copied to the source, is noted as an item that waits for exactly these. An item
// acts like an earlier event of its media and file names, in the source and in the
// target: an event that would change either first makes the copy.
//
// A transaction that ends an item holds the row of its target's lane (FOR UPDATE),
// one that takes a snapshot that of its source's. Both conflict with the key share
// that a settlement holds on its lanes. So each event or item either has ended
// before a snapshot, and is in the ledger, or finds that an item waits for it.
package environment

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/batch"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// The states of a copy: its snapshot is due; it has its items and waits for
// its event; its items are copied; nothing is left to do.
const (
	pending = "pending"
	planned = "planned"
	active  = "active"
	ended   = "ended"
)

// The states of an item. A waiting one has no object yet: the events and items in
// copy_waits must end first.
const (
	waiting = "waiting"
	owed    = "owed"
	done    = "done"
	failed  = "failed"
)

// Options say how copies run.
type Options struct {
	// Lease is how long an item belongs to a worker that doesn't renew.
	Lease time.Duration
	// Concurrency bounds the items that one worker copies at once to one
	// environment.
	Concurrency int
	// Attempts is after how many transient failures an item fails.
	Attempts int
	// Backoff is the delay after the n-th failure of an item, from 1.
	Backoff func(failures int) time.Duration
}

// Store copies and deletes environments.
type Store struct {
	db       *database.DB
	ledger   *ledger.Store
	settings *integration.Store
	buckets  *bucket.Pool
	options  Options
	events   *outbox.Store
	woken    chan struct{}
	copied   *batch.Loader[*copied, error]
}

// New returns the environments of that database. It is made before the outbox,
// whose settlements it records.
func New(db *database.DB, l *ledger.Store, settings *integration.Store, buckets *bucket.Pool, options Options) *Store {
	s := &Store{db: db, ledger: l, settings: settings, buckets: buckets, options: options, woken: make(chan struct{}, 1)}
	s.events = outbox.New(db, s)
	s.copied = batch.New(s.recordCopies)
	return s
}

// Wake makes Run look for snapshots and items now.
func (s *Store) Wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// item is one media that a copy owes.
type item struct {
	CopySequence   int64  `db:"copy_sequence"`
	MediaID        string `db:"media_id"`
	SourceLane     int64  `db:"source_lane"`
	TargetLane     int64  `db:"target_lane"`
	SourceBucket   string `db:"source_bucket"`
	SourceKey      string `db:"source_key"`
	SourceETag     string `db:"source_etag"`
	FileName       string `db:"file_name"`
	Version        int64  `db:"version"`
	ContentType    string `db:"content_type"`
	Size           int64  `db:"size"`
	State          string `db:"state"`
	FailureCount   int    `db:"failure_count"`
	FirstFailedAt  *int64 `db:"first_failed_at"`
	DeniedAt       *int64 `db:"denied_at"`
	DeniedCount    int    `db:"denied_count"`
	MayHaveWritten bool   `db:"may_have_written"`
	Token          int64  `db:"lease_token"`

	// asked is when the lease was asked for.
	asked time.Time
	// key is where this attempt copies to, once that was decided. unsure tells
	// that an object of ours may stand there.
	key    string
	unsure bool
}

const itemColumns = `copy_sequence, media_id, source_lane, target_lane, source_bucket, source_key, source_etag,
	file_name, version, content_type, size, state, failure_count, first_failed_at, denied_at, denied_count,
	may_have_written, lease_token`

// lockLanes serialises with whoever settles events of the lanes, ends items
// into them or takes snapshots of them.
func (s *Store) lockLanes(ctx context.Context, tx *sqlx.Tx, lanes ...int64) error {
	slices.Sort(lanes)
	for _, laneID := range slices.Compact(lanes) {
		var locked int64
		err := tx.GetContext(ctx, &locked, s.db.SQL(`SELECT lane_id FROM {lanes} WHERE lane_id = ? {for_update}`), laneID)
		if err != nil {
			return fmt.Errorf("lock lane %d: %w", laneID, err)
		}
	}
	return nil
}

// openGate lets a source's later events start when no snapshot of it is due.
// The caller has locked the lane in an earlier statement.
func (s *Store) openGate(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	if _, err := tx.ExecContext(ctx, s.db.SQL(outbox.SetGate), laneID, laneID); err != nil {
		return fmt.Errorf("open the gate of lane %d: %w", laneID, err)
	}
	return nil
}

// rows encodes the argument of a {rows …} table.
func rows(values any) (string, error) {
	encoded, err := json.Marshal(values)
	if err != nil {
		return "", fmt.Errorf("encode rows: %w", err)
	}
	if string(encoded) == "null" {
		return "[]", nil // a slice without a value
	}
	return string(encoded), nil
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Record writes what settled events did to the ledger, to copies that wait for
// them, and to environments that were deleted. It is the outbox's Recorder.
func (s *Store) Record(ctx context.Context, tx *sqlx.Tx, settled []*outbox.Settlement, snapshots map[int64]int64) error {
	var effects []ledger.Effects
	var changed []mediaOf
	var ended []ending
	for _, st := range settled {
		if unsure(st) {
			possible, err := s.possibleWrite(ctx, tx, st.Event)
			if err != nil {
				return err
			}
			st.Effects.Possible = possible
		}
		effects = append(effects, st.Effects)
		e := st.Event
		if !st.Ends() || e.Media() == "" || snapshots[e.LaneID] == 0 {
			continue
		}
		ended = append(ended, ending{WaitsFor: e.Sequence, MediaID: e.Media()})
		if st.Effects.Put != nil {
			changed = append(changed, mediaOf{e.LaneID, e.Media()})
		}
	}
	if err := s.ledger.Apply(ctx, tx, effects); err != nil {
		return err
	}
	for _, st := range settled {
		if err := s.recordOne(ctx, tx, st); err != nil {
			return err
		}
	}
	if len(ended) == 0 {
		return nil
	}
	var copying bool
	if err := tx.GetContext(ctx, &copying, s.db.SQL(`SELECT EXISTS (SELECT 1 FROM {copies} WHERE state <> 'ended')`)); err != nil {
		return wrap("look for copies", err)
	}
	if !copying {
		return nil
	}
	if err := s.lookAgainAt(ctx, tx, changed); err != nil {
		return err
	}
	return s.strike(ctx, tx, ended)
}

// unsure tells whether an event died without a word of its handler on what it
// may have written: it lapsed, panicked, or its end could not be recorded.
func unsure(st *outbox.Settlement) bool {
	return st.Kind == outbox.Die && len(st.Effects.Possible) == 0 &&
		st.Failure != nil && st.Failure.Class == failure.Transient
}

// recordOne writes what an event of a whole environment did, and blocks an
// integration that turned us away.
func (s *Store) recordOne(ctx context.Context, tx *sqlx.Tx, st *outbox.Settlement) error {
	e := st.Event
	switch {
	case st.Kind == outbox.Yield && st.Failure != nil && st.Failure.Class == failure.Integration:
		return s.settings.BlockTx(ctx, tx, e.LaneID, st.Failure.Code, st.Failure.Error())
	case st.Kind == outbox.Complete && e.Type == events.EnvironmentDeletedType && st.Outcome != outbox.Superseded:
		return s.forget(ctx, tx, e)
	case st.Kind == outbox.Complete && e.Type == events.EnvironmentCreatedType && st.Outcome == outbox.Superseded:
		return s.cancelCopy(ctx, tx, e.Sequence)
	}
	return nil
}
