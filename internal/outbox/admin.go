package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// The states that each action takes, as a condition on an event e and its lane l.
// An available event in the window of a living holder may be running.
const (
	retryTakes   = `e.state IN ('dead', 'retryable')`
	discardTakes = `(e.state IN ('dead', 'retryable') OR e.state = 'available'
		AND (e.parked OR l.leased_by IS NULL OR l.leased_until < {now}))`
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
	sequence int64
	Environment
	takes bool
}

func (s *Store) act(ctx context.Context, name string, filter Filter, action Action, takes string,
	change func(context.Context, *sqlx.Tx, []*Event) error) (Counts, error) {
	var counts Counts
	if filter.Empty() {
		return counts, fmt.Errorf("%s events: an empty filter would match every event: name some", name)
	}
	// What is published from now on isn't meant, and would be found for ever.
	var upTo int64
	if err := s.db.GetContext(ctx, &upTo, s.db.SQL(`SELECT coalesce(max(sequence), 0) FROM {outbox}`)); err != nil {
		return counts, fmt.Errorf("%s events: %w", name, err)
	}
	for after := int64(0); ; {
		found, last, err := s.candidates(ctx, filter, takes, after, upTo)
		if err != nil {
			return counts, fmt.Errorf("%s events: %w", name, err)
		}
		if last == 0 {
			return counts, nil
		}
		after = last
		changed, err := s.change(ctx, name, action, takes, found, change)
		if err != nil {
			return counts, fmt.Errorf("%s events (%d were changed before): %w", name, counts.Changed, err)
		}
		counts.Matched += int64(len(found))
		counts.Changed += changed
		counts.Skipped = counts.Matched - counts.Changed
	}
}

// candidates are the next events of a filter, and the last one that was looked at.
func (s *Store) candidates(ctx context.Context, filter Filter, takes string, after, upTo int64) (list []candidate, last int64, err error) {
	condition, args := filter.whereUnread()
	query := `
		SELECT e.sequence, ` + s.cut(`e.type`) + ` AS type, ` + s.cut(`e.service_id`) + ` AS service_id,
			` + s.cut(`e.environment_id`) + ` AS environment_id, e.media_id,
			CASE WHEN e.media_id IS NULL AND ? THEN ` + s.within(`e.data`, s.MaxEventSize) + ` END AS data, ` + takes + ` AS takes
		FROM {outbox} e LEFT JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
		WHERE e.sequence > ? AND e.sequence <= ? AND (` + condition + `) ORDER BY e.sequence LIMIT ?`
	args = slices.Concat([]any{filter.MediaID != "", after, upTo}, args, []any{adminBatch})
	rows, err := s.db.QueryxContext(ctx, s.db.SQL(query), args...) //nolint:sqlclosecheck // it doesn't know sqlx's
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var f struct {
			Event
			Takes bool `db:"takes"`
		}
		if err := rows.StructScan(&f); err != nil {
			return nil, 0, err
		}
		last = f.Sequence
		if filter.hasMedia(&f.Event) {
			list = append(list, candidate{f.Sequence, Environment{f.ServiceID, f.EnvironmentID}, f.Takes})
		}
	}
	return list, last, rows.Err()
}

// change does one batch, with the lanes locked so that their holders and
// nobody else wait for it.
func (s *Store) change(ctx context.Context, name string, action Action, takes string, found []candidate,
	change func(context.Context, *sqlx.Tx, []*Event) error) (changed int64, err error) {
	var sequences []int64
	var lanes []Environment
	for _, c := range found {
		if c.takes {
			sequences = append(sequences, c.sequence)
			if c.HasLane() {
				lanes = append(lanes, c.Environment)
			}
		}
	}
	if len(sequences) == 0 || action.DryRun {
		return int64(len(sequences)), nil
	}
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		changed = 0
		made, err := s.makeLanes(ctx, tx, lanes)
		if err != nil {
			return err
		}
		laneIDs, err := rows(sortedIDs(made))
		if err != nil {
			return err
		}
		var locked []int64
		if err := tx.SelectContext(ctx, &locked, s.db.SQL(`
			SELECT lane_id FROM {lanes} WHERE lane_id {in_ids} ORDER BY lane_id {for_update}`), laneIDs); err != nil {
			return err
		}
		ids, err := rows(sequences)
		if err != nil {
			return err
		}
		// What was a candidate may have run, or begun to, before its lane was locked.
		taken, err := s.events(ctx, tx, `
			SELECT `+s.eventColumns(s.payload())+`, coalesce(l.lane_id, 0) AS lane_id FROM {outbox} e
			LEFT JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
			WHERE e.sequence {in_ids} AND `+takes+` ORDER BY e.sequence`, ids)
		if err != nil || len(taken) == 0 {
			return err
		}
		if err := change(ctx, tx, taken); err != nil {
			return err
		}
		changed = int64(len(taken))
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {audit} (at, actor, action, target, reason, changed) VALUES ({now}, ?, ?, ?, ?, ?)`),
			text(action.Actor), "events "+name, fmt.Sprintf("%d events from sequence %d", changed, taken[0].Sequence),
			text(action.Reason), changed)
		return err
	})
	return changed, err
}

func sortedIDs(lanes map[Environment]int64) []int64 { return slices.Sorted(maps.Values(lanes)) }

// retry lets events run again. Their resources keep them in order, also where they
// were never written: an event that died without being handled.
func (s *Store) retry(ctx context.Context, tx *sqlx.Tx, list []*Event) error {
	if err := s.exec(ctx, tx, `
		UPDATE {outbox} AS e SET state = 'available', parked = false, requeued = true, next_attempt_at = NULL,
			failure_count = 0, denied_at = NULL, denied_count = 0, lapse_count = 0, finished_at = NULL,
			lane_id = v.lane_id, media_id = v.media_id, version = v.version, resources = v.resources
		FROM {rows v(`+describedColumns+`)} WHERE e.sequence = v.sequence`, describedRows(list)); err != nil {
		return err
	}
	return s.wakeLanes(ctx, tx, lanesOf(list))
}

func lanesOf(list []*Event) map[int64]bool {
	lanes := make(map[int64]bool)
	for _, e := range list {
		lanes[e.LaneID] = true
	}
	return lanes
}

func (s *Store) discard(ctx context.Context, tx *sqlx.Tx, list []*Event) error {
	ids, err := rows(sequencesOf(list))
	if err != nil {
		return err
	}
	tainted, err := s.tainted(ctx, tx, ids)
	if err != nil {
		return err
	}
	if err := s.exec(ctx, tx, `
		UPDATE {outbox} AS e SET state = 'discarded', finished_at = {now}, parked = false, requeued = false,
			holding = false, next_attempt_at = NULL,
			lane_id = v.lane_id, media_id = v.media_id, version = v.version, resources = v.resources
		FROM {rows v(`+describedColumns+`)} WHERE e.sequence = v.sequence`, describedRows(list)); err != nil {
		return err
	}
	if err := s.recorder.RecordDiscarded(ctx, tx, list, tainted); err != nil {
		return err
	}
	return s.release(ctx, tx, list)
}

// tainted tells which events a worker that died may have started, also where
// nobody has taken over its lane yet.
func (s *Store) tainted(ctx context.Context, tx *sqlx.Tx, ids string) (map[int64]bool, error) {
	var found []int64
	err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence FROM {outbox} e JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
		WHERE (e.sequence <= l.tainted_to OR l.leased_until < {now}) AND e.sequence {in_ids}`), ids)
	tainted := make(map[int64]bool, len(found))
	for _, sequence := range found {
		tainted[sequence] = true
	}
	return tainted, err
}
