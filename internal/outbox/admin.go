package outbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"
)

// Action is what an operator wants of many events at once, and why.
type Action struct {
	Actor, Reason string
	// DryRun only counts.
	DryRun bool
}

// Counts says what an action did: matched events are those of its filter,
// skipped ones of them are in a state that it doesn't take.
type Counts struct {
	Matched int64 `json:"matched"`
	Changed int64 `json:"changed"`
	Skipped int64 `json:"skipped"`
}

// adminBatch bounds one transaction of an action.
const adminBatch = 500

// The states that each action takes, as a condition on an event e. An
// available event in the window of a living holder may be running, and so may
// one that was published since and isn't assigned yet.
const (
	retryTakes   = `e.state IN ('dead', 'retryable')`
	discardTakes = `(e.state IN ('dead', 'retryable') OR e.state = 'available' AND e.lane_id IS NOT NULL AND (e.parked OR NOT EXISTS (
		SELECT 1 FROM {lanes} h WHERE h.lane_id = e.lane_id AND h.leased_by IS NOT NULL AND h.leased_until >= {now})))`
)

// Retry makes dead events, and those that wait for a retry, run again now, in
// publish order and with all their attempts before them.
func (s *Store) Retry(ctx context.Context, filter Filter, action Action) (Counts, error) {
	return s.act(ctx, "retry", filter, action, retryTakes, s.retry)
}

// Discard ends events for good without running them: every state but running,
// completed and discarded. What they may have written is settled by their
// media's next event.
func (s *Store) Discard(ctx context.Context, filter Filter, action Action) (Counts, error) {
	return s.act(ctx, "discard", filter, action, discardTakes, s.discard)
}

type candidate struct {
	Sequence int64 `db:"sequence"`
	LaneID   int64 `db:"lane_id"`
	Takes    bool  `db:"takes"`
}

func (s *Store) act(ctx context.Context, name string, filter Filter, action Action, takes string,
	change func(context.Context, *sqlx.Tx, []int64) (int64, error)) (Counts, error) {
	var counts Counts
	if filter.Empty() {
		return counts, fmt.Errorf("%s events: an empty filter would match every event: name some", name)
	}
	// An event that no worker has assigned yet could be assigned while it changes.
	if err := s.AssignAll(ctx); err != nil {
		return counts, err
	}
	for after := int64(0); ; {
		found, err := s.candidates(ctx, filter, takes, after)
		if err != nil {
			return counts, fmt.Errorf("%s events: %w", name, err)
		}
		if len(found) == 0 {
			return counts, nil
		}
		after = found[len(found)-1].Sequence
		changed, err := s.change(ctx, name, action, found, change)
		if err != nil {
			return counts, fmt.Errorf("%s events (%d were changed before): %w", name, counts.Changed, err)
		}
		counts.Matched += int64(len(found))
		counts.Changed += changed
		counts.Skipped = counts.Matched - counts.Changed
	}
}

func (s *Store) candidates(ctx context.Context, filter Filter, takes string, after int64) ([]candidate, error) {
	condition, args := filter.where()
	var found []candidate
	err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence, coalesce(e.lane_id, 0) AS lane_id, `+takes+` AS takes
		FROM {outbox} e LEFT JOIN {lanes} l ON l.lane_id = e.lane_id
		WHERE e.sequence > ? AND (`+condition+`) ORDER BY e.sequence LIMIT ?`),
		append(append([]any{after}, args...), adminBatch)...)
	return found, err
}

// change does one batch, with the lanes locked so that their holders and
// nobody else wait for it.
func (s *Store) change(ctx context.Context, name string, action Action, found []candidate,
	change func(context.Context, *sqlx.Tx, []int64) (int64, error)) (changed int64, err error) {
	var sequences, lanes []int64
	for _, c := range found {
		if c.Takes {
			sequences = append(sequences, c.Sequence)
			lanes = append(lanes, c.LaneID)
		}
	}
	if len(sequences) == 0 || action.DryRun {
		return int64(len(sequences)), nil
	}
	slices.Sort(lanes)
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		ids, err := rows(slices.Compact(slices.Clone(lanes)))
		if err != nil {
			return err
		}
		var locked []int64
		if err := tx.SelectContext(ctx, &locked, s.db.SQL(`
			SELECT lane_id FROM {lanes} WHERE lane_id {in_ids} ORDER BY lane_id {for_update}`), ids); err != nil {
			return err
		}
		if changed, err = change(ctx, tx, sequences); err != nil || changed == 0 {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {audit} (at, actor, action, target, reason, changed) VALUES ({now}, ?, ?, ?, ?, ?)`),
			text(action.Actor), "events "+name, fmt.Sprintf("%d events from sequence %d", changed, sequences[0]),
			text(action.Reason), changed)
		return err
	})
	return changed, err
}

func (s *Store) retry(ctx context.Context, tx *sqlx.Tx, sequences []int64) (int64, error) {
	ids, err := rows(sequences)
	if err != nil {
		return 0, err
	}
	var lanes []int64
	if err := tx.SelectContext(ctx, &lanes, s.db.SQL(`
		UPDATE {outbox} AS e SET state = 'available', parked = false, requeued = true, next_attempt_at = NULL,
			failure_count = 0, denied_at = NULL, denied_count = 0, lapse_count = 0, finished_at = NULL
		WHERE e.sequence {in_ids} AND `+retryTakes+` RETURNING lane_id`), ids); err != nil || len(lanes) == 0 {
		return 0, err
	}
	woken := make(map[int64]bool)
	for _, laneID := range lanes {
		woken[laneID] = true
	}
	// What was dead when it was found was never there to be read: what is read now
	// may come before something that commits late.
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} AS l SET last_sequence = v.sequence FROM (
			SELECT lane_id, max(sequence) AS sequence FROM {outbox} WHERE sequence {in_ids} GROUP BY lane_id) AS v
		WHERE l.lane_id = v.lane_id AND l.last_sequence < v.sequence`), ids); err != nil {
		return 0, err
	}
	return int64(len(lanes)), s.wakeLanes(ctx, tx, woken)
}

func (s *Store) discard(ctx context.Context, tx *sqlx.Tx, sequences []int64) (int64, error) {
	ids, err := rows(sequences)
	if err != nil {
		return 0, err
	}
	var discarded []*Event
	if err := tx.SelectContext(ctx, &discarded, s.db.SQL(`
		UPDATE {outbox} AS e SET state = 'discarded', finished_at = {now}, parked = false, requeued = false,
			next_attempt_at = NULL
		WHERE e.sequence {in_ids} AND `+discardTakes+` RETURNING `+eventColumns), ids); err != nil || len(discarded) == 0 {
		return 0, err
	}
	tainted, err := s.tainted(ctx, tx, ids)
	if err != nil {
		return 0, err
	}
	if err := s.recorder.RecordDiscarded(ctx, tx, discarded, tainted); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {outbox} SET holding = false WHERE sequence {in_ids} AND state = 'discarded'`), ids); err != nil {
		return 0, err
	}
	return int64(len(discarded)), s.release(ctx, tx, discarded)
}

// tainted tells which events a worker that died may have started, also where
// nobody has taken over its lane yet.
func (s *Store) tainted(ctx context.Context, tx *sqlx.Tx, ids string) (map[int64]bool, error) {
	var found []int64
	err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence FROM {outbox} e JOIN {lanes} l ON l.lane_id = e.lane_id
		WHERE (e.sequence <= l.tainted_to OR l.leased_until < {now}) AND e.sequence {in_ids}`), ids)
	tainted := make(map[int64]bool, len(found))
	for _, sequence := range found {
		tainted[sequence] = true
	}
	return tainted, err
}
