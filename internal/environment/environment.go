// Package environment copies and deletes the media of whole environments.
//
// A new environment has the media of its source as of its event. The snapshot
// notes them as items of a copy, without S3; the items are then copied as a
// job of its own. An item that is owed acts like an earlier event of its media
// and file name, in the source and in the target: who would change either
// first makes the copy.
package environment

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
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

// The states of an item.
const (
	owed      = "owed"
	done      = "done"
	failed    = "failed"
	cancelled = "cancelled"
)

// Options say how copies run.
type Options struct {
	// Lease is how long an item belongs to a worker that doesn't renew.
	Lease time.Duration
	// Concurrency bounds the items that one worker copies at once.
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
	woken    chan struct{}
}

// New returns the environments of that database. It is made before the outbox,
// whose settlements it records.
func New(db *database.DB, l *ledger.Store, settings *integration.Store, buckets *bucket.Pool, options Options) *Store {
	return &Store{db: db, ledger: l, settings: settings, buckets: buckets, options: options, woken: make(chan struct{}, 1)}
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
	CopySequence  int64  `db:"copy_sequence"`
	MediaID       string `db:"media_id"`
	SourceLane    int64  `db:"source_lane"`
	TargetLane    int64  `db:"target_lane"`
	SourceBucket  string `db:"source_bucket"`
	SourceKey     string `db:"source_key"`
	SourceETag    string `db:"source_etag"`
	FileName      string `db:"file_name"`
	Version       int64  `db:"version"`
	ContentType   string `db:"content_type"`
	Size          int64  `db:"size"`
	FailureCount  int    `db:"failure_count"`
	FirstFailedAt *int64 `db:"first_failed_at"`
	Token         int64  `db:"lease_token"`
	CopyState     string `db:"copy_state"`
	TargetHeld    bool   `db:"target_held"`
	Now           int64  `db:"now_us"`

	// key is where this attempt copies to, once it was decided.
	key string
}

const itemColumns = `i.copy_sequence, i.media_id, i.source_lane, i.target_lane, i.source_bucket, i.source_key,
	i.source_etag, i.file_name, i.version, i.content_type, i.size, i.failure_count, i.first_failed_at,
	i.lease_token, c.state AS copy_state, l.held AS target_held, {now} AS now_us`

const itemTables = `{copy_items} i JOIN {copies} c ON c.sequence = i.copy_sequence
	JOIN {lanes} l ON l.lane_id = i.target_lane`

// lockLane serialises with whoever settles events of the lane or looks at its
// snapshots.
func (s *Store) lockLane(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	var id int64
	err := tx.GetContext(ctx, &id, s.db.SQL(`SELECT lane_id FROM {lanes} WHERE lane_id = ? {for_update}`), laneID)
	if err != nil {
		return fmt.Errorf("lock lane %d: %w", laneID, err)
	}
	return nil
}

// openGate lets a source's later events start when no snapshot of it is due.
func (s *Store) openGate(ctx context.Context, tx *sqlx.Tx, laneID int64) error {
	_, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} SET wake = wake + 1, ready_at = coalesce(ready_at, {now}),
			gate_sequence = (SELECT min(sequence) FROM {copies} WHERE source_lane = ? AND state = 'pending')
		WHERE lane_id = ?`), laneID, laneID)
	if err != nil {
		return fmt.Errorf("open the gate of lane %d: %w", laneID, err)
	}
	return nil
}

func encode(values any) (string, error) {
	encoded, err := json.Marshal(values)
	return string(encoded), err
}

// ending is the end of a media's event or item, at that place of its lane.
type ending struct {
	laneID   int64
	mediaID  string
	sequence int64
}

// Record writes what settled events did to the ledger, to copies that their
// media join, and to environments that were deleted. It is the outbox's
// Recorder.
func (s *Store) Record(ctx context.Context, tx *sqlx.Tx, settled []*outbox.Settlement, snapshots map[int64]int64) error {
	var effects []ledger.Effects
	var endings []ending
	for _, st := range settled {
		effects = append(effects, st.Effects)
		if st.Ends() && st.Event.Media() != "" && st.Event.Sequence < snapshots[st.Event.LaneID] {
			endings = append(endings, ending{st.Event.LaneID, st.Event.Media(), st.Event.Sequence})
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
	return s.join(ctx, tx, endings)
}
