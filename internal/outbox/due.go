package outbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

const (
	dueBatch   = 500
	pruneBatch = 2000
)

// Promote makes parked events readable whose time has come. It tells which
// lanes got some and whether there may be more. Lanes that another transaction
// has locked come another time: nobody else's events wait for them.
func (s *Store) Promote(ctx context.Context) (lanes []int64, more bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		lanes, more = nil, false
		var due []struct {
			Sequence int64 `db:"sequence"`
			LaneID   int64 `db:"lane_id"`
		}
		if err := tx.SelectContext(ctx, &due, s.db.SQL(`
			SELECT sequence, CAST(lane_id AS bigint) AS lane_id FROM {outbox}
			WHERE next_attempt_at <= {now} AND `+database.Unplanned(`lane_id IS NOT NULL`)+` ORDER BY next_attempt_at LIMIT ?`), dueBatch); err != nil || len(due) == 0 {
			return err
		}
		distinct := make(map[int64]bool)
		for _, e := range due {
			distinct[e.LaneID] = true
		}
		locked, err := s.lockLanes(ctx, tx, slices.Sorted(maps.Keys(distinct)), true)
		if err != nil || len(locked) == 0 {
			return err
		}
		clear(distinct)
		for _, laneID := range locked {
			distinct[laneID] = true
		}
		var sequences []int64
		for _, e := range due {
			if distinct[e.LaneID] {
				sequences = append(sequences, e.Sequence)
			}
		}
		ids, err := rows(sequences)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {outbox} SET state = 'available', parked = false, requeued = true, next_attempt_at = NULL
			WHERE sequence {in_ids} AND next_attempt_at <= {now}`), ids); err != nil {
			return err
		}
		lanes, more = locked, len(due) == dueBatch
		return s.wakeLanes(ctx, tx, distinct)
	})
	if err != nil {
		return nil, false, fmt.Errorf("promote due events: %w", err)
	}
	return lanes, more, nil
}

// Prune deletes completed and discarded events that ended longer ago than the
// retention, in batches along the sequence, and returns where it got to: 0
// when a batch has none that is old enough. Dead events stay. A publisher may have
// written a created_at in the future, which tells nothing.
func (s *Store) Prune(ctx context.Context, retention time.Duration, after int64) (next, deleted int64, err error) {
	var last *int64
	if err := s.db.GetContext(ctx, &last, s.db.SQL(`
		SELECT max(sequence) FROM (SELECT sequence, created_at, finished_at FROM {outbox}
			WHERE sequence > ? ORDER BY sequence LIMIT ?) AS oldest
		WHERE CASE WHEN created_at > {now} THEN finished_at ELSE created_at END < {now} - ?`),
		after, pruneBatch, retention.Microseconds()); err != nil {
		return after, 0, fmt.Errorf("find events to prune: %w", err)
	}
	if last == nil {
		return 0, 0, nil
	}
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		DELETE FROM {outbox} WHERE sequence > ? AND sequence <= ?
		AND state IN ('completed', 'discarded') AND finished_at < {now} - ?`),
		after, *last, retention.Microseconds())
	if err != nil {
		return after, 0, fmt.Errorf("prune events: %w", err)
	}
	deleted, err = result.RowsAffected()
	return *last, deleted, err
}

// waitingFor tells of an event e that what it was put off for isn't over.
const waitingFor = `(EXISTS (SELECT 1 FROM {outbox} w
		WHERE w.sequence IN (e.waits_for, e.waits_for_copy) AND w.finished_at IS NULL)
	OR EXISTS (SELECT 1 FROM {copy_items} i JOIN {copies} c ON c.sequence = i.copy_sequence
		WHERE i.copy_sequence = e.waits_for_copy AND i.state IN ('owed', 'waiting') AND c.state = 'active'))`

// Idle tells whether nothing is left that would run by itself soon: no event
// is available or running in a lane that isn't held, and no copy is due or being
// made. Retries in the future, of events and of copies, don't count, nor what waits
// for them. It is one statement, so that nothing moves on between two looks.
func (s *Store) Idle(ctx context.Context) (bool, error) {
	var busy bool
	if err := s.db.GetContext(ctx, &busy, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {outbox} e LEFT JOIN {lanes} l
			ON l.service_id = e.service_id AND l.environment_id = e.environment_id
			WHERE `+Readable+` AND NOT coalesce(l.held, false) AND NOT `+waitingFor+`)
		OR EXISTS (SELECT 1 FROM {outbox} e JOIN {lanes} l ON l.lane_id = e.lane_id
			WHERE e.next_attempt_at IS NOT NULL AND NOT l.held
			AND (e.next_attempt_at <= {now} OR e.state = 'available') AND NOT `+waitingFor+`)
		OR EXISTS (SELECT 1 FROM {copies} WHERE state = 'pending')
		OR EXISTS (SELECT 1 FROM {copy_items} i JOIN {copies} c ON c.sequence = i.copy_sequence
			JOIN {lanes} l ON l.lane_id = i.target_lane
			WHERE i.state = 'owed' AND c.state = 'active'
			AND (i.leased_until >= {now} OR i.next_attempt_at <= {now} AND NOT l.held AND NOT EXISTS (
				SELECT 1 FROM {outbox} e WHERE e.sequence = i.overtaken_by AND `+Unfinished+`)))`)); err != nil {
		return false, fmt.Errorf("look whether the outbox is idle: %w", err)
	}
	return !busy, nil
}

// Waiting tells whether lanes with work have no holder.
func (s *Store) Waiting(ctx context.Context) (bool, error) {
	var waiting bool
	if err := s.db.GetContext(ctx, &waiting, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {lanes} WHERE ready_at IS NOT NULL AND leased_by IS NULL AND NOT held)`)); err != nil {
		return false, fmt.Errorf("look for waiting lanes: %w", err)
	}
	return waiting, nil
}
