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
	LaneID        int64  `db:"lane_id"`
	ServiceID     string `db:"service_id"`
	EnvironmentID string `db:"environment_id"`
	Token         int64  `db:"lease_token"`
	ReadFrom      int64  `db:"read_from"`
	LapseCount    int    `db:"lapse_count"`
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
// worker may have started is remembered: its events may have written.
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
		if err != nil {
			return err
		}
		return s.assignEarlier(ctx, tx, lanes)
	})
	if err != nil {
		return nil, fmt.Errorf("take over lapsed lanes: %w", err)
	}
	return lanes, nil
}

// assignEarlier puts what the lanes' former holders had taken before what is in
// the lanes: who reads them would else begin with what comes after it. Those
// workers are dead, or will learn that the lanes are no longer theirs.
func (s *Store) assignEarlier(ctx context.Context, tx *sqlx.Tx, lanes []Lane) error {
	of := make(map[environment]int64, len(lanes))
	for _, l := range lanes {
		of[environment{l.ServiceID, l.EnvironmentID}] = l.LaneID
	}
	ids, err := rows(laneIDsOf(lanes))
	if err != nil {
		return err
	}
	var found []*Event
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT `+freshColumns+` FROM {outbox} AS e
		WHERE lane_id IS NULL AND sequence < (SELECT max(last_sequence) FROM {lanes} WHERE lane_id {in_ids})
			AND sequence < (SELECT last_sequence FROM {lanes} l
				WHERE l.service_id = e.service_id AND l.environment_id = e.environment_id AND l.lane_id {in_ids})
		ORDER BY sequence`), ids, ids); err != nil {
		return err
	}
	var list []*assignment
	for _, e := range found {
		e.LaneID = of[environment{e.ServiceID, e.EnvironmentID}]
		if a := assign(e); a.created == nil { // such an event is never taken
			list = append(list, a)
		}
	}
	return s.write(ctx, tx, list, toBeRead)
}

// VoidLeases lets every lease lapse at once. Only who knows that no other
// worker lives may call it: the holder of SQLite's worker lock.
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
	// ReadFrom is kept for the lane's next holder.
	ReadFrom int64 `json:"read_from"`
	// SeenWake is the lane's wake count before it was found drained; -1 where
	// work is left.
	SeenWake int64 `json:"seen_wake"`
}

// Status is what a holder must know of its lane before it reads on.
type Status struct {
	LaneID int64 `db:"lane_id"`
	Token  int64 `db:"lease_token"`
	Wake   int64 `db:"wake"`
	Held   bool  `db:"held"`
	// Gate is the sequence above which events wait for a snapshot; nil if none.
	Gate            *int64 `db:"gate_sequence"`
	DeletedSequence int64  `db:"deleted_sequence"`
	TaintedTo       int64  `db:"tainted_to"`
	// SnapshotSequence is the last EnvironmentCreated whose snapshot was taken.
	SnapshotSequence int64 `db:"snapshot_sequence"`
	// Emptying is the deletion that has begun to empty the directory, and has not
	// ended: no event below starts. nil if there is none.
	Emptying *int64 `db:"emptying_sequence"`
	// Holds tells that parked events hold others back.
	Holds bool `db:"holds"`
}

// gate is 0 where there is none.
func (s *Status) gate() int64 {
	if s.Gate == nil {
		return 0
	}
	return *s.Gate
}

// emptying is 0 where no deletion has begun.
func (s *Status) emptying() int64 {
	if s.Emptying == nil {
		return 0
	}
	return *s.Emptying
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

// Release gives lanes back. A lane that was drained sleeps until it is woken,
// unless that happened since its holder looked. Events that the holder took
// and didn't finish are assigned, so that the next one reads them. It changes
// nothing about lanes that the caller has lost, nor about their events: what came
// before them may be nowhere but in its memory, or not even there any more.
func (s *Store) Release(ctx context.Context, held []Holding, taken []*Event) error {
	var leases map[int64]lease
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) (err error) {
		if leases, err = s.fence(ctx, tx, held, exclusive); err != nil {
			return err
		}
		if err := s.writeTaken(ctx, tx, stillHeld(taken, held, leases), toBeRead); err != nil {
			return err
		}
		return s.exec(ctx, tx, `
			UPDATE {lanes} AS l SET leased_by = NULL, leased_until = NULL, read_from = v.read_from,
				ready_at = CASE WHEN v.seen_wake = l.wake THEN NULL ELSE {now} END,
				lapse_count = CASE WHEN v.seen_wake = l.wake THEN 0 ELSE lapse_count END
			FROM {rows v(lane_id bigint, lease_token bigint, read_from bigint, seen_wake bigint)}
			WHERE l.lane_id = v.lane_id AND l.lease_token = v.lease_token AND `+leased, held)
	})
	if err != nil {
		return fmt.Errorf("give lanes back: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range held {
		if leases[h.LaneID].Token == h.Token && s.took[h.LaneID] == h.Token {
			delete(s.took, h.LaneID)
		}
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
	var found []Status
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, lease_token, wake, held, gate_sequence, deleted_sequence, tainted_to, snapshot_sequence,
			emptying_sequence,
			EXISTS (SELECT 1 FROM {holds} h WHERE h.lane_id = l.lane_id) AS holds
		FROM {lanes} l WHERE lane_id {in_ids}`), ids); err != nil {
		return nil, fmt.Errorf("look at held lanes: %w", err)
	}
	return found, nil
}

// MarkRunning shows operators which events have been running for a while, and
// tells a successor what a dead worker had started. It changes nothing about
// events that have ended or were put back meanwhile, or whose lane was lost.
func (s *Store) MarkRunning(ctx context.Context, held []Holding, events []*Event) error {
	type begun struct {
		Sequence int64 `json:"sequence"`
		Recorded int   `json:"recorded_count"`
	}
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		leases, err := s.fence(ctx, tx, held, shared)
		if err != nil {
			return err
		}
		var list []begun
		for _, e := range stillHeld(events, held, leases) {
			list = append(list, begun{e.Sequence, e.RecordedCount})
		}
		if len(list) == 0 {
			return nil
		}
		// What somebody is writing at this moment has an end, or will be marked
		// another time: not waiting for it, we are in nobody's way.
		return s.exec(ctx, tx, `
			UPDATE {outbox} SET state = 'running' WHERE sequence `+s.db.In(`
				SELECT e.sequence FROM {outbox} e JOIN {rows v(sequence bigint, recorded_count integer)}
				ON e.sequence = v.sequence AND e.recorded_count = v.recorded_count
				WHERE `+database.Unplanned(`e.state = 'available' AND NOT e.parked AND e.lane_id IS NOT NULL`)+` `+
			s.skipLocked("e")), list)
	})
	if err != nil {
		return fmt.Errorf("mark running events: %w", err)
	}
	return nil
}

func laneIDsOf(lanes []Lane) []int64 {
	ids := make([]int64, len(lanes))
	for i, lane := range lanes {
		ids[i] = lane.LaneID
	}
	return ids
}
