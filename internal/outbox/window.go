package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

// Reading asks for a lane's next events.
type Reading struct {
	LaneID int64 `json:"lane_id"`
	// After is the reading position: events up to it were read before.
	After int64 `json:"after_sequence"`
	Limit int   `json:"most"`
	// Known is how many events the reader has already: requeued ones among
	// them are found again, and must not keep others from being found.
	Known int `json:"known"`
}

// windowChunk bounds the lanes that one statement reads on SQLite, whose text
// grows with them.
const windowChunk = 16

// Read reads the next events of held lanes in sequence: those above the
// reading position, and those that were requeued below it. Events above a
// gate aren't given out, nor those below a deletion that has begun.
func (s *Store) Read(ctx context.Context, readings []Reading) ([]*Event, error) {
	var found []*Event
	if s.db.Dialect == database.PostgreSQL {
		encoded, err := rows(readings)
		if err != nil {
			return nil, err
		}
		// One plan, executed for each lane.
		query := `SELECT e.* FROM {rows r(lane_id bigint, after_sequence bigint, most integer, known integer)}
			CROSS JOIN LATERAL (` + windowOf(`r.lane_id`, `r.after_sequence`, `r.most`, `r.most + r.known`) + `) AS e`
		if err := s.db.SelectContext(ctx, &found, s.db.SQL(query), encoded); err != nil {
			return nil, fmt.Errorf("read lanes: %w", err)
		}
		return found, nil
	}
	for chunk := range slices.Chunk(readings, windowChunk) {
		texts := make([]string, len(chunk))
		var args []any
		for i, r := range chunk {
			texts[i] = windowOf(`?`, `?`, `?`, `?`)
			args = append(args,
				r.LaneID, r.After, r.LaneID, r.LaneID, r.Limit,
				r.LaneID, r.After, r.LaneID, r.LaneID, r.Limit+r.Known)
		}
		var part []*Event
		if err := s.db.SelectContext(ctx, &part, s.db.SQL(strings.Join(texts, ` UNION ALL `)), args...); err != nil {
			return nil, fmt.Errorf("read lanes: %w", err)
		}
		found = append(found, part...)
	}
	return found, nil
}

// windowOf is the query for one lane's next events.
func windowOf(lane, after, mostFresh, mostRequeued string) string {
	between := `sequence < coalesce((SELECT gate_sequence FROM {lanes} WHERE lane_id = ` + lane + `), 9223372036854775807)
			AND sequence >= coalesce((SELECT emptying_sequence FROM {lanes} WHERE lane_id = ` + lane + `), 0)`
	const copying = `(EXISTS (SELECT 1 FROM {copies} WHERE source_lane = lane_id AND state <> 'ended')
		OR EXISTS (SELECT 1 FROM {copies} WHERE target_lane = lane_id AND state <> 'ended')) AS copying`
	return `
		SELECT * FROM (SELECT ` + eventColumns + `, ` + copying + ` FROM {outbox}
			WHERE lane_id = ` + lane + ` AND sequence > ` + after + ` AND state IN ('available', 'running') AND NOT parked
			AND ` + between + ` ORDER BY sequence LIMIT ` + mostFresh + `) AS fresh
		UNION ALL
		SELECT * FROM (SELECT ` + eventColumns + `, ` + copying + ` FROM {outbox}
			WHERE lane_id = ` + lane + ` AND sequence <= ` + after + ` AND requeued
			AND state IN ('available', 'running') AND NOT parked
			AND ` + between + ` ORDER BY sequence LIMIT ` + mostRequeued + `) AS requeued`
}

type hold struct {
	LaneID   int64  `db:"lane_id" json:"lane_id"`
	Resource string `db:"resource" json:"resource"`
	Sequence int64  `db:"sequence" json:"sequence"`
}

func holdsOf(e *Event, more ...string) []hold {
	var list []hold
	for _, r := range append(resources(e.Resources), more...) {
		list = append(list, hold{e.LaneID, r, e.Sequence})
	}
	return list
}

// Park takes those of a lane's events out of its reading window that wait for
// an earlier, parked event with a common resource. events is in sequence
// order; the answer has the sequences that were parked. Those of running are
// first made to hold back what waits for them, so that many events behind a
// long one don't fill the window. It fails with ErrLeaseLost where the caller
// has lost the lane.
//
// The lane is locked against Settle: an event that is parked behind one that
// ends at this moment would wait for a release that is over.
func (s *Store) Park(ctx context.Context, holding Holding, running, events []*Event) (map[int64]bool, error) {
	parked := make(map[int64]bool)
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		clear(parked)
		leases, err := s.fence(ctx, tx, []Holding{holding}, exclusive)
		if err != nil {
			return err
		}
		if leases[holding.LaneID].Token != holding.Token {
			return ErrLeaseLost
		}
		if err := s.writeTaken(ctx, tx, slices.Concat(running, events), toBeRead); err != nil {
			return err
		}
		for _, e := range running {
			if err := s.holdRunning(ctx, tx, e); err != nil {
				return err
			}
		}
		for _, e := range events {
			waits, err := s.waits(ctx, tx, e)
			if err != nil {
				return err
			}
			if !waits {
				continue
			}
			if _, err := tx.ExecContext(ctx, s.db.SQL(`
				UPDATE {outbox} SET parked = true, holding = true, state = 'available'
				WHERE sequence = ? AND state IN ('available', 'running')`), e.Sequence); err != nil {
				return err
			}
			if err := s.insertHolds(ctx, tx, holdsOf(e)); err != nil {
				return err
			}
			parked[e.Sequence] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("park events: %w", err)
	}
	return parked, nil
}

// holdRunning gives a running event holds, unless it has ended meanwhile.
func (s *Store) holdRunning(ctx context.Context, tx *sqlx.Tx, e *Event) error {
	if _, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {outbox} SET holding = true WHERE sequence = ? AND state IN ('available', 'running') AND NOT parked`),
		e.Sequence); err != nil {
		return err
	}
	return s.insertHolds(ctx, tx, holdsOf(e))
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
	own := resources(e.Resources)
	if !slices.Contains(own, Everything) {
		own = append(own, Everything)
	}
	encoded, err := json.Marshal(holdsOf(&Event{LaneID: e.LaneID, Sequence: e.Sequence, Resources: mustJSON(own)}))
	if err != nil {
		return false, err
	}
	var waits bool
	err = tx.GetContext(ctx, &waits, s.db.SQL(`
		SELECT EXISTS (SELECT 1 FROM {rows v(lane_id bigint, resource text, sequence bigint)}
			JOIN {holds} h ON h.lane_id = v.lane_id AND h.resource = v.resource AND h.sequence < v.sequence)`),
		string(encoded))
	return waits, err
}

func mustJSON(list []string) string {
	encoded, err := json.Marshal(list)
	if err != nil {
		panic(errors.Join(errors.New("a list of strings didn't encode"), err))
	}
	return string(encoded)
}

// release lets go of what ended events held back. The lowest event that waits
// on each of their resources is read again; whether it may start is decided
// then.
func (s *Store) release(ctx context.Context, tx *sqlx.Tx, ended []*Event) error {
	var freed []hold
	lanes := make(map[int64]bool)
	var sequences []int64
	for _, e := range ended {
		freed = append(freed, holdsOf(e)...)
		sequences = append(sequences, e.Sequence)
		lanes[e.LaneID] = true
	}
	ids, err := rows(sequences)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, s.db.SQL(`DELETE FROM {holds} WHERE sequence {in_ids}`), ids); err != nil {
		return err
	}
	for _, e := range ended {
		if e.Type == events.EnvironmentDeletedType {
			if err := s.endEmptying(ctx, tx, e); err != nil {
				return err
			}
		}
	}
	if err := s.exec(ctx, tx, `
		UPDATE {outbox} SET parked = false, requeued = true
		WHERE parked AND next_attempt_at IS NULL AND state = 'available' AND sequence `+s.db.In(`
			SELECT min(h.sequence) FROM {holds} h
			JOIN {rows v(lane_id bigint, resource text)} ON h.lane_id = v.lane_id AND h.resource = v.resource
			GROUP BY h.lane_id, h.resource`), freed); err != nil {
		return err
	}
	var everything []int64
	for _, h := range freed {
		if h.Resource == Everything {
			everything = append(everything, h.LaneID)
		}
	}
	if len(everything) > 0 {
		ids, err := rows(everything)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {outbox} SET parked = false, requeued = true
			WHERE parked AND next_attempt_at IS NULL AND state = 'available' AND sequence `+s.db.In(`
				SELECT h.sequence FROM {holds} h WHERE h.lane_id {in_ids}`)), ids); err != nil {
			return err
		}
	}
	return s.wakeLanes(ctx, tx, lanes)
}

// endEmptying lets what is left before a deletion that had begun start again: it
// wasn't read meanwhile.
func (s *Store) endEmptying(ctx context.Context, tx *sqlx.Tx, deletion *Event) error {
	result, err := tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {lanes} SET emptying_sequence = NULL WHERE lane_id = ? AND emptying_sequence = ?`),
		deletion.LaneID, deletion.Sequence)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, s.db.SQL(`
		UPDATE {outbox} SET requeued = true
		WHERE lane_id = ? AND sequence < ? AND state IN ('available', 'running') AND NOT parked`),
		deletion.LaneID, deletion.Sequence)
	return err
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
