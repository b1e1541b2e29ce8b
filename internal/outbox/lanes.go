package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// Lane is a leased lane.
type Lane struct {
	LaneID int64 `db:"lane_id"`
	Environment
	Token      int64 `db:"lease_token"`
	ReadFrom   int64 `db:"read_from"`
	LapseCount int   `db:"lapse_count"`
}

// leased is a condition on a lane that is looked up by its key: the planner
// must not see the index of leased lanes in it.
const leased = `coalesce(leased_by, '') <> ''`

const laneColumns = `lane_id, service_id, environment_id, lease_token, read_from, lapse_count`

// leaseThose leases the lanes that a query finds, to a worker and for a time.
func (s *Store) leaseThose(query string) string {
	return s.db.SQL(`
		UPDATE {lanes} SET leased_by = ?, lease_token = lease_token + 1, leased_until = {now} + ?, started = true
		WHERE lane_id ` + s.db.In(query) + ` RETURNING ` + laneColumns)
}

// Claim leases up to n lanes that have work and no holder, those first that
// have waited longest.
func (s *Store) Claim(ctx context.Context, worker string, n int, lease time.Duration) ([]Lane, error) {
	var lanes []Lane
	err := s.db.SelectContext(ctx, &lanes, s.leaseThose(`
		SELECT lane_id FROM {lanes} WHERE ready_at IS NOT NULL AND leased_by IS NULL AND NOT held
		ORDER BY ready_at LIMIT ? {skip_locked}`), worker, lease.Microseconds(), n)
	if err != nil {
		return nil, fmt.Errorf("claim lanes: %w", err)
	}
	return lanes, nil
}

// TakeOver leases up to n lanes whose holder let its lease lapse. What that
// worker may have started is remembered: its events may have written. They still
// stand in the lane, to be read.
func (s *Store) TakeOver(ctx context.Context, worker string, n int, lease time.Duration) ([]Lane, error) {
	var lanes []Lane
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		lanes = nil
		if err := tx.SelectContext(ctx, &lanes, s.db.SQL(`
			UPDATE {lanes} SET leased_by = ?, lease_token = lease_token + 1, leased_until = {now} + ?,
				lapse_count = lapse_count + 1,
				tainted_to = (SELECT coalesce(max(sequence), 0) FROM {outbox})
			WHERE lane_id `+s.db.In(`
				SELECT lane_id FROM {lanes} WHERE leased_by IS NOT NULL AND leased_until < {now}
				ORDER BY leased_until LIMIT ? {skip_locked}`)+`
			RETURNING `+laneColumns), worker, lease.Microseconds(), n); err != nil || len(lanes) == 0 {
			return err
		}
		ids, err := rows(laneIDsOf(lanes))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {outbox} SET state = 'available', lapse_count = lapse_count + 1
			WHERE state = 'running' AND lane_id {in_ids}`), ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take over lapsed lanes: %w", err)
	}
	return lanes, nil
}

// VoidLeases lets every lease lapse at once. The caller must know that no other
// worker lives: it holds SQLite's worker lock.
func (s *Store) VoidLeases(ctx context.Context) error {
	if s.db.Dialect != database.SQLite {
		return nil
	}
	for _, query := range []string{
		`UPDATE {lanes} SET leased_until = 0 WHERE leased_by IS NOT NULL`,
		`UPDATE {copy_items} SET leased_until = 0 WHERE leased_until IS NOT NULL`,
	} {
		if _, err := s.db.ExecContext(ctx, s.db.SQL(query)); err != nil {
			return fmt.Errorf("void a dead worker's leases: %w", err)
		}
	}
	return nil
}

// Holding names a lane that the caller holds.
type Holding struct {
	LaneID int64 `json:"lane_id"`
	Token  int64 `json:"lease_token"`
	// ReadFrom is kept for the lane's next holder: at or below it stands no
	// unfinished event that isn't parked or requeued.
	ReadFrom int64 `json:"read_from"`
}

// Status is what a holder must know of its lane before it reads on.
type Status struct {
	LaneID          int64 `db:"lane_id"`
	Token           int64 `db:"lease_token"`
	Wake            int64 `db:"wake"`
	Held            bool  `db:"held"`
	DeletedSequence int64 `db:"deleted_sequence"`
	TaintedTo       int64 `db:"tainted_to"`
	// Holds tells that parked events hold others back.
	Holds bool `db:"holds"`
}

// Renew prolongs leases and tells which lanes are still the caller's. Lanes
// that are in neither answer could not be asked about, for the reason that err
// gives: another transaction may have locked one of them for long, and the
// others' leases must not lapse meanwhile.
func (s *Store) Renew(ctx context.Context, held []Holding, lease time.Duration) (kept, lost map[int64]bool, err error) {
	kept, lost = make(map[int64]bool, len(held)), make(map[int64]bool)
	for _, skipLocked := range []bool{true, false} {
		var left []Holding
		for _, h := range held {
			if !kept[h.LaneID] && !lost[h.LaneID] {
				left = append(left, h)
			}
		}
		if len(left) == 0 {
			break
		}
		if err := s.renew(ctx, left, lease, skipLocked, kept, lost); err != nil {
			return kept, lost, fmt.Errorf("renew leases: %w", err)
		}
	}
	return kept, lost, nil
}

func (s *Store) renew(ctx context.Context, held []Holding, lease time.Duration, skipLocked bool,
	kept, lost map[int64]bool) error {
	var locked, renewed []int64
	if err := s.db.Tx(ctx, func(tx *sqlx.Tx) (err error) {
		locked, renewed = nil, nil
		if locked, err = s.lockLanes(ctx, tx, heldIDs(held), skipLocked); err != nil {
			return err
		}
		var mine []Holding
		for _, h := range held {
			if slices.Contains(locked, h.LaneID) {
				mine = append(mine, h)
			}
		}
		if len(mine) == 0 {
			return nil
		}
		encoded, err := rows(mine)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {lanes} AS l SET leased_until = {now} + ?, read_from = v.read_from
			FROM {rows v(lane_id bigint, lease_token bigint, read_from bigint)}
			WHERE l.lane_id = v.lane_id AND l.lease_token = v.lease_token AND `+leased),
			lease.Microseconds(), encoded); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &renewed, s.db.SQL(`
			SELECT l.lane_id FROM {lanes} l JOIN {rows v(lane_id bigint, lease_token bigint)}
			ON l.lane_id = v.lane_id AND l.lease_token = v.lease_token WHERE `+leased), encoded)
	}); err != nil {
		return err
	}
	for _, id := range locked {
		lost[id] = true
	}
	for _, id := range renewed {
		kept[id] = true
		delete(lost, id)
	}
	return nil
}

// Release gives lanes back. A lane in which nothing can be read sleeps until it
// is woken, by what its parked events wait for or by a feed that sees something
// new. Lanes that the caller has lost stay as they are.
func (s *Store) Release(ctx context.Context, held []Holding) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.fence(ctx, tx, held, exclusive); err != nil {
			return err
		}
		const left = `EXISTS (SELECT 1 FROM {outbox} e WHERE {in_lane e l} AND e.sequence > v.read_from AND ` + Readable + belowGate + `)
			OR EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = l.lane_id AND e.requeued AND ` + Readable + belowGate + `)`
		return s.exec(ctx, tx, `
			UPDATE {lanes} AS l SET leased_by = NULL, leased_until = NULL, read_from = v.read_from,
				ready_at = CASE WHEN `+left+` THEN {now} END,
				lapse_count = CASE WHEN `+left+` THEN lapse_count ELSE 0 END
			FROM {rows v(lane_id bigint, lease_token bigint, read_from bigint)}
			WHERE l.lane_id = v.lane_id AND l.lease_token = v.lease_token AND `+leased, held)
	})
	if err != nil {
		return fmt.Errorf("give lanes back: %w", err)
	}
	return nil
}

// skipLocked ends a query for rows that are locked unless others have them.
func (s *Store) skipLocked(table string) string {
	if s.db.Dialect == database.SQLite {
		return ``
	}
	return `FOR NO KEY UPDATE OF ` + table + ` SKIP LOCKED`
}

// lockLanes locks lanes in the one order that all do it in. It returns those
// that it has: all that exist or, where it may skip, those that nobody else
// has locked.
func (s *Store) lockLanes(ctx context.Context, tx *sqlx.Tx, lanes []int64, skipLocked bool) ([]int64, error) {
	if s.db.Dialect == database.SQLite {
		return lanes, nil // its one writer has locked everything
	}
	ids, err := rows(lanes)
	if err != nil {
		return nil, err
	}
	query := `SELECT lane_id FROM {lanes} l WHERE lane_id {in_ids} ORDER BY lane_id `
	if skipLocked {
		query += s.skipLocked(`l`)
	} else {
		query += `{for_no_key_update}`
	}
	var locked []int64
	err = tx.SelectContext(ctx, &locked, s.db.SQL(query), ids)
	return locked, err
}

func heldIDs(held []Holding) []int64 {
	ids := make([]int64, len(held))
	for i, h := range held {
		ids[i] = h.LaneID
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Statuses reads what may have changed about held lanes.
func (s *Store) Statuses(ctx context.Context, lanes []int64) ([]Status, error) {
	ids, err := rows(lanes)
	if err != nil {
		return nil, err
	}
	// EXISTS might be planned as a hash of all holds, while they are few.
	var found []Status
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, lease_token, wake, held, deleted_sequence, tainted_to,
			coalesce((SELECT true FROM {holds} h WHERE h.lane_id = l.lane_id LIMIT 1), false) AS holds
		FROM {lanes} l WHERE lane_id {in_ids}`), ids); err != nil {
		return nil, fmt.Errorf("look at held lanes: %w", err)
	}
	return found, nil
}

// MarkRunning shows operators which events have been running for a while, and
// tells a successor what a dead worker had started. It changes nothing about
// events that have ended or were put back meanwhile, or whose lane was lost.
func (s *Store) MarkRunning(ctx context.Context, held []Holding, events []*Event) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		leases, err := s.fence(ctx, tx, held, shared)
		if err != nil {
			return err
		}
		mine := describedRows(stillHeld(events, held, leases))
		if len(mine) == 0 {
			return nil
		}
		// What somebody is writing at this moment has an end, or will be marked
		// another time: not waiting for it, we are in nobody's way.
		encoded, err := rows(mine)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {outbox} AS e SET state = 'running', lane_id = v.lane_id, media_id = v.media_id, version = v.version,
				resources = v.resources
			FROM {rows v(`+describedColumns+`)} WHERE e.sequence = v.sequence AND e.sequence `+s.db.In(`
				SELECT e.sequence FROM {outbox} e JOIN {rows v(sequence bigint, recorded_count integer, wait_count integer)}
				ON e.sequence = v.sequence AND `+asRead+`
				WHERE `+database.Unplanned(`e.state = 'available' AND NOT e.parked`)+` `+
			s.skipLocked("e"))), encoded, encoded)
		return err
	})
	if err != nil {
		return fmt.Errorf("mark running events: %w", err)
	}
	return nil
}

// described is what a worker knows of an event from its payload, for its row, and
// how often the event was settled when the worker read it.
type described struct {
	Sequence  int64   `json:"sequence"`
	LaneID    int64   `json:"lane_id"`
	MediaID   *string `json:"media_id"`
	Version   *int64  `json:"version"`
	Resources string  `json:"resources"`
	Recorded  int     `json:"recorded_count"`
	Waited    int     `json:"wait_count"`
}

const (
	describedColumns = `sequence bigint, lane_id bigint, media_id text, version bigint, resources text,
		recorded_count integer, wait_count integer`
	// asRead tells of an event e and a described v that nobody has settled the event
	// since it was read: each attempt that doesn't end it raises one of the counts.
	asRead = `e.recorded_count = v.recorded_count AND e.wait_count = v.wait_count`
)

func describedRows(events []*Event) []described {
	list := make([]described, len(events))
	for i, e := range events {
		list[i] = described{e.Sequence, e.LaneID, e.MediaID, e.Version, e.Resources, e.RecordedCount, e.WaitCount}
	}
	return list
}

func laneIDsOf(lanes []Lane) []int64 {
	ids := make([]int64, len(lanes))
	for i, lane := range lanes {
		ids[i] = lane.LaneID
	}
	return ids
}
