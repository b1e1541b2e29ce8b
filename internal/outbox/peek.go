package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/events"
)

// peekMost bounds what one Peek finds.
const peekMost = 64

// Peek is a look by one query, without a transaction: it finds new events that
// the worker takes into lanes that it holds, which writes nothing. It returns
// ok false, and nothing, where any event asks for more than that: a look by
// Assign must then find them all.
//
// Where the look is one ahead, it sees what was published since the last one came
// to the end, but for hidden environments.
func (s *Store) Peek(ctx context.Context, look Look) (done Assigned, ok bool, err error) {
	after, hidden, ok := s.peeksFrom(look)
	if !ok {
		return Assigned{}, false, nil
	}
	carried, err := rows(look.Carried(after))
	if err != nil {
		return Assigned{}, false, err
	}
	var found []struct {
		Sequence      int64  `db:"sequence"`
		EventID       string `db:"event_id"`
		Type          string `db:"type"`
		ServiceID     string `db:"e_service_id"`
		EnvironmentID string `db:"e_environment_id"`
		Data          []byte `db:"data"`
		Metadata      []byte `db:"metadata"`
		CreatedAt     int64  `db:"created_at"`
		Fresh         int    `db:"fresh"` // how many were found in all
		LaneState
	}
	if err := s.db.SelectContext(ctx, &found, s.db.SQL(`
		WITH fresh AS (SELECT * FROM {outbox} WHERE lane_id IS NULL AND sequence > ? AND sequence NOT IN {ids}
			ORDER BY sequence LIMIT ?)
		SELECT e.sequence, CAST(e.event_id AS text) AS event_id, e.type, e.service_id AS e_service_id,
			e.environment_id AS e_environment_id, e.data, e.metadata, e.created_at,
			(SELECT count(*) FROM fresh) AS fresh, `+laneStateColumns+`
		FROM fresh e JOIN {lanes} l ON l.service_id = e.service_id AND l.environment_id = e.environment_id
		ORDER BY e.sequence`), after, carried, peekMost); err != nil {
		return Assigned{}, false, fmt.Errorf("look for new events: %w", err)
	}
	lanes := make(map[int64]*LaneState)
	for i := range found {
		lanes[found[i].LaneID] = &found[i].LaneState
	}
	if len(s.lost(lanes)) > 0 {
		return Assigned{}, false, nil
	}
	takes := look.Take()
	for i := range found {
		f := &found[i]
		if _, hides := hidden[environment{f.ServiceID, f.EnvironmentID}]; hides && f.Type != events.EnvironmentCreatedType {
			continue
		}
		a := assign(&Event{
			Sequence: f.Sequence, EventID: f.EventID, Type: f.Type, ServiceID: f.ServiceID,
			EnvironmentID: f.EnvironmentID, Data: f.Data, Metadata: f.Metadata, CreatedAt: f.CreatedAt, LaneID: f.LaneID,
		})
		mine := f.LeasedBy != nil && *f.LeasedBy == look.Worker
		if len(found) < f.Fresh || a.State == Dead || a.order[0] == Everything || !mine || !takes(&f.LaneState) {
			return Assigned{}, false, nil
		}
		done.Taken = append(done.Taken, a.taken(f.Token))
	}
	done.AtEnd = look.Ahead
	s.mu.Lock()
	s.note(done.Taken)
	s.mu.Unlock()
	return done, len(done.Taken) > 0 && len(found) < peekMost, nil
}

// peeksFrom tells above which sequence to peek, and past which environments. It
// returns ok false where a look ahead has to go on, or back.
func (s *Store) peeksFrom(look Look) (after int64, hidden map[environment]int64, ok bool) {
	if !look.Ahead {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.sweep.passed, nil, true
	}
	p := s.currentPass()
	return p.walk.passed, p.hidden, p.complete && p.back == nil && p.wayBack(time.Now(), look) == nil
}
