package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// hold is a row of holds: an unfinished event that others of its lane come after
// which share the resource.
type hold struct {
	LaneID   int64  `db:"lane_id" json:"lane_id"`
	Resource string `db:"resource" json:"resource"`
	Sequence int64  `db:"sequence" json:"sequence"`
}

func holdsOf(e *Event) []hold {
	var list []hold
	for _, r := range e.OrderedBy() {
		list = append(list, hold{e.LaneID, r, e.Sequence})
	}
	return list
}

// ErrLeaseLost tells that another worker has the lane, or may have it soon.
var ErrLeaseLost = errors.New("the lane's lease was lost")

// Park takes those of a lane's events out of its reading window that wait for
// an earlier event with holds and a common resource. waiting is in sequence order.
// Those of running are first made to hold back what waits for them, so that many
// events behind a long one don't fill the window. It fails with ErrLeaseLost where
// the caller has lost the lane.
//
// It returns which of waiting don't stand in the window any more, and aren't the
// caller's to start: those that it parked, and those that have ended or were parked
// before, be it by a call whose answer was lost.
//
// The lane is locked against Settle: an event that is parked behind one that
// ends at this moment would wait for a release that is over.
func (s *Store) Park(ctx context.Context, holding Holding, running, waiting []*Event) (left map[int64]bool, err error) {
	err = s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		left = make(map[int64]bool)
		leases, err := s.fence(ctx, tx, []Holding{holding}, exclusive)
		if err != nil {
			return err
		}
		if leases[holding.LaneID].Token != holding.Token {
			return ErrLeaseLost
		}
		if err := s.startHolding(ctx, tx, running, false); err != nil {
			return err
		}
		ours, err := s.readable(ctx, tx, waiting)
		if err != nil {
			return err
		}
		for _, e := range waiting {
			if ours[e.Sequence] {
				waits, err := s.waits(ctx, tx, e)
				if err != nil {
					return err
				}
				if !waits {
					continue
				}
				if err := s.startHolding(ctx, tx, []*Event{e}, true); err != nil {
					return err
				}
			}
			left[e.Sequence] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("park events: %w", err)
	}
	return left, nil
}

// readable tells which of the events still stand in the reading window.
func (s *Store) readable(ctx context.Context, tx *sqlx.Tx, list []*Event) (map[int64]bool, error) {
	encoded, err := rows(sequencesOf(list))
	if err != nil {
		return nil, err
	}
	var found []int64
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT e.sequence FROM {outbox} e WHERE e.sequence {in_ids} AND `+database.Unplanned(Readable)), encoded); err != nil {
		return nil, err
	}
	ours := make(map[int64]bool, len(found))
	for _, sequence := range found {
		ours[sequence] = true
	}
	return ours, nil
}

func sequencesOf(list []*Event) []int64 {
	sequences := make([]int64, len(list))
	for i, e := range list {
		sequences[i] = e.Sequence
	}
	return sequences
}

// startHolding gives events in the window holds, unless they have ended, and parks
// them where that is asked for.
func (s *Store) startHolding(ctx context.Context, tx *sqlx.Tx, list []*Event, park bool) error {
	if len(list) == 0 {
		return nil
	}
	encoded, err := rows(describedRows(list))
	if err != nil {
		return err
	}
	set := `holding = true`
	if park {
		set = `holding = true, parked = true, requeued = false, state = 'available'`
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {outbox} AS e SET `+set+`, lane_id = v.lane_id, media_id = v.media_id, version = v.version, resources = v.resources
		FROM {rows v(`+describedColumns+`)} WHERE e.sequence = v.sequence AND `+asRead+` AND `+database.Unplanned(Readable)), encoded); err != nil {
		return err
	}
	var holds []hold
	for _, e := range list {
		holds = append(holds, holdsOf(e)...)
	}
	return s.insertHolds(ctx, tx, holds)
}

// insertHolds makes events hold back what comes after them, unless they have
// ended: nothing would ever let go of their holds.
func (s *Store) insertHolds(ctx context.Context, tx *sqlx.Tx, holds []hold) error {
	if len(holds) == 0 {
		return nil
	}
	return s.exec(ctx, tx, `
		INSERT INTO {holds} (lane_id, resource, sequence) SELECT v.lane_id, v.resource, v.sequence
		FROM {rows v(lane_id bigint, resource text, sequence bigint)} JOIN {outbox} e ON e.sequence = v.sequence
		WHERE e.holding AND e.finished_at IS NULL ON CONFLICT DO NOTHING`, holds)
}

// waits tells whether an earlier event that holds its resources must end first.
func (s *Store) waits(ctx context.Context, tx *sqlx.Tx, e *Event) (bool, error) {
	asked := holdsOf(e)
	if !e.Shares(Everything) {
		asked = append(asked, hold{e.LaneID, Everything, e.Sequence})
	}
	encoded, err := rows(asked)
	if err != nil {
		return false, err
	}
	var waits bool
	err = tx.GetContext(ctx, &waits, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {rows v(lane_id bigint, resource text, sequence bigint)}
			JOIN {holds} h ON h.lane_id = v.lane_id AND h.resource = v.resource AND h.sequence < v.sequence)`), encoded)
	return waits, err
}

// release lets go of what ended events held back. The lowest event that waits
// on each of their resources is read again; whether it may start is decided
// then. All that is parked in a lane may have waited for an event that concerns
// the whole environment.
func (s *Store) release(ctx context.Context, tx *sqlx.Tx, ended []*Event) error {
	lanes := make(map[int64]bool)
	var everything []int64
	for _, e := range ended {
		lanes[e.LaneID] = true
		if e.Shares(Everything) {
			everything = append(everything, e.LaneID)
		}
	}
	ids, err := rows(sequencesOf(ended))
	if err != nil {
		return err
	}
	var freed []hold
	if err := tx.SelectContext(ctx, &freed, s.db.SQL(`
		DELETE FROM {holds} WHERE sequence {in_ids} RETURNING lane_id, resource, sequence`), ids); err != nil {
		return err
	}
	requeue := `UPDATE {outbox} SET parked = false, requeued = true
		WHERE ` + database.Unplanned(`parked AND next_attempt_at IS NULL AND state = 'available'`) + ` AND sequence `
	if err := s.exec(ctx, tx, requeue+s.db.In(`
		SELECT min(h.sequence) FROM {holds} h
		JOIN {rows v(lane_id bigint, resource text)} ON h.lane_id = v.lane_id AND h.resource = v.resource
		GROUP BY h.lane_id, h.resource`), freed); err != nil {
		return err
	}
	if len(everything) > 0 {
		ids, err := rows(everything)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(requeue+s.db.In(`
			SELECT h.sequence FROM {holds} h WHERE h.lane_id {in_ids}`)), ids); err != nil {
			return err
		}
	}
	return s.wakeLanes(ctx, tx, lanes)
}

// Supersede completes, as superseded, what stands unfinished in a lane before a
// deletion of its environment. It returns those events' sequences.
func Supersede(ctx context.Context, tx *sqlx.Tx, sql func(string) string, laneID, before int64) ([]int64, error) {
	var ended []int64
	for _, query := range []string{
		`UPDATE {outbox} AS e SET state = 'completed', outcome = 'superseded', finished_at = {now}, parked = false,
			requeued = false, holding = false, next_attempt_at = NULL, lane_id = l.lane_id
			FROM {lanes} l WHERE l.lane_id = ? AND {in_lane e l} AND e.sequence < ? AND ` + Readable + ` RETURNING sequence`,
		`UPDATE {outbox} AS e SET state = 'completed', outcome = 'superseded', finished_at = {now}, parked = false,
			requeued = false, holding = false, next_attempt_at = NULL
			WHERE e.lane_id = ? AND e.sequence < ? AND e.parked RETURNING sequence`,
	} {
		var part []int64
		if err := tx.SelectContext(ctx, &part, sql(query), laneID, before); err != nil {
			return nil, fmt.Errorf("supersede what comes before the deletion: %w", err)
		}
		ended = append(ended, part...)
	}
	_, err1 := tx.ExecContext(ctx, sql(`DELETE FROM {holds} WHERE lane_id = ? AND sequence < ?`), laneID, before)
	_, err2 := tx.ExecContext(ctx, sql(`
		UPDATE {lanes} SET wake = wake + 1, deleted_sequence = ? WHERE lane_id = ? AND deleted_sequence < ?`),
		before, laneID, before)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("supersede what comes before the deletion: %w", err)
	}
	return ended, nil
}

// wakeLanes says that lanes have something new to read.
func (s *Store) wakeLanes(ctx context.Context, tx *sqlx.Tx, lanes map[int64]bool) error {
	ids := slices.Sorted(maps.Keys(lanes))
	if _, err := s.lockLanes(ctx, tx, ids, false); err != nil {
		return err
	}
	encoded, err := rows(ids)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} SET wake = wake + 1, ready_at = coalesce(ready_at, {now}) WHERE lane_id {in_ids}`), encoded)
	return err
}
