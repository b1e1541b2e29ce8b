package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// sweep remembers where newly committed events are looked for. Most have a
// sequence just above the last one seen, so the usual look begins a little
// below that; an event whose transaction took longer to commit is found by a
// look at all of them, which is made as often as its cost allows. So a
// transaction that stays open elsewhere, and keeps the index entries of
// assigned events from being cleaned up, makes neither look costly.
type sweep struct {
	marks    []mark // the highest sequence seen, now and then
	fullAt   time.Time
	lastSeen int64
}

type mark struct {
	at       time.Time
	sequence int64
}

const (
	// assignBatch bounds one transaction of assigning.
	assignBatch = 1000
	// overlap is how long transactions usually stay open after their INSERT.
	overlap = time.Second
	// A full look comes no sooner than this, nor than fullShare times what
	// the last one took.
	fullEvery = 100 * time.Millisecond
	fullShare = 20
)

// from tells above which sequence to look, and whether that is a full look.
func (w *sweep) from(now time.Time) (sequence int64, full bool) {
	if !now.Before(w.fullAt) {
		return 0, true
	}
	for len(w.marks) > 1 && now.Sub(w.marks[1].at) > overlap {
		w.marks = w.marks[1:]
	}
	if len(w.marks) == 0 {
		return 0, true
	}
	return w.marks[0].sequence, false
}

func (w *sweep) seen(now time.Time, highest int64) {
	w.lastSeen = max(w.lastSeen, highest)
	const apart = overlap / 10
	if n := len(w.marks); n == 0 || now.Sub(w.marks[n-1].at) >= apart {
		w.marks = append(w.marks, mark{now, w.lastSeen})
	}
}

// Assigned says what one call of Assign did.
type Assigned struct {
	// Lanes has the lanes that got events.
	Lanes []int64
	// Created tells that an EnvironmentCreated is among them: its snapshot is due.
	Created bool
	// More tells that there may be further events to assign.
	More bool
}

type assignment struct {
	Sequence   int64   `json:"sequence"`
	LaneID     int64   `json:"lane_id"`
	MediaID    *string `json:"media_id"`
	Version    *int64  `json:"version"`
	Resources  string  `json:"resources"`
	State      string  `json:"state"`
	ErrorClass *string `json:"error_class"`
	ErrorCode  *string `json:"error_code"`
	Error      *string `json:"error"`
	Requeued   bool    `json:"requeued"`

	environment environment
	created     *events.EnvironmentCreated
}

// Assign puts newly committed events into their lanes, in sequence. An event
// that can't be understood becomes dead with its reason. One worker assigns
// at a time; the others return at once with nothing done.
func (s *Store) Assign(ctx context.Context) (Assigned, error) {
	now := time.Now()
	s.mu.Lock()
	after, full := s.sweep.from(now)
	s.mu.Unlock()

	var done Assigned
	var highest int64
	known := make(map[environment]int64)
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		done, highest = Assigned{}, 0
		clear(known)
		if mine, err := s.assigner(ctx, tx); err != nil || !mine {
			return err
		}
		var fresh []Event
		err := tx.SelectContext(ctx, &fresh, s.db.SQL(`
			SELECT sequence, type, service_id, environment_id, data FROM {outbox}
			WHERE lane_id IS NULL AND sequence > ? ORDER BY sequence LIMIT ?`), after, assignBatch)
		if err != nil || len(fresh) == 0 {
			return err
		}
		highest = fresh[len(fresh)-1].Sequence
		assignments := make([]*assignment, len(fresh))
		for i := range fresh {
			assignments[i] = assign(&fresh[i])
		}
		done.More = len(fresh) == assignBatch
		return s.place(ctx, tx, assignments, known, &done)
	})
	if err != nil {
		return Assigned{}, fmt.Errorf("assign events to lanes: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for env, laneID := range known {
		s.lanes[env] = laneID
	}
	s.sweep.seen(now, highest)
	if full && !done.More {
		s.sweep.fullAt = time.Now().Add(max(fullEvery, fullShare*time.Since(now)))
	}
	return done, nil
}

// assigner takes the right to assign until the transaction ends.
func (s *Store) assigner(ctx context.Context, tx *sqlx.Tx) (bool, error) {
	if s.db.Dialect == database.SQLite {
		return true, nil
	}
	var mine bool
	err := tx.GetContext(ctx, &mine, `SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))`,
		s.db.Schema+".outbox.assign")
	return mine, err
}

// assign reads what a lane needs to know of an event off its payload.
func assign(event *Event) *assignment {
	a := &assignment{
		Sequence:    event.Sequence,
		State:       Available,
		Resources:   "[]",
		environment: environmentOf(event),
	}
	parsed, err := events.Parse(event.Type, event.ServiceID, event.EnvironmentID, event.Data)
	if err != nil {
		var invalid *events.InvalidError
		if errors.As(err, &invalid) && invalid.MediaID != "" {
			a.MediaID = &invalid.MediaID
		}
		class, code, words := string(failure.Permanent), failure.InvalidEvent, text(err.Error())
		a.State, a.ErrorClass, a.ErrorCode, a.Error = Dead, &class, &code, &words
		return a
	}
	order := []string{}
	if media := parsed.Media(); media != "" {
		a.MediaID = &media
		order = append(order, "m:"+media)
	}
	for _, name := range parsed.FileNames() {
		order = append(order, "n:"+name)
	}
	switch e := parsed.(type) {
	case events.EnvironmentCreated:
		a.created = &e
		order = []string{Everything}
	case events.EnvironmentDeleted:
		order = []string{Everything}
	case interface{ Published() events.Version }:
		version := e.Published().Micros()
		a.Version = &version
	}
	encoded, _ := json.Marshal(order) // strings always encode
	a.Resources = string(encoded)
	return a
}

// environmentOf tells which lane an event belongs to. What no database could
// keep as a name, and only an invalid event has, leads to one lane without a
// name: one bad event must not keep all others from being assigned.
func environmentOf(event *Event) environment {
	const longest = 1024 // bytes; two of them fit into PostgreSQL's index entries
	for _, name := range []string{event.ServiceID, event.EnvironmentID} {
		if len(name) > longest || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return environment{}
		}
	}
	return environment{event.ServiceID, event.EnvironmentID}
}

// place writes the assignments, and wakes their lanes.
func (s *Store) place(ctx context.Context, tx *sqlx.Tx, assignments []*assignment,
	known map[environment]int64, done *Assigned) error {
	for _, a := range assignments {
		known[a.environment] = 0
		if a.created != nil {
			known[environment{a.environment.serviceID, a.created.SourceEnvironmentID}] = 0
		}
	}
	if err := s.laneIDs(ctx, tx, known); err != nil {
		return err
	}
	last, err := s.lastSequences(ctx, tx, known)
	if err != nil {
		return err
	}
	ready := make(map[int64]int64) // lane → highest sequence
	for _, a := range assignments {
		a.LaneID = known[a.environment]
		if a.State == Dead {
			continue
		}
		a.Requeued = a.Sequence < last[a.LaneID]
		ready[a.LaneID] = max(ready[a.LaneID], a.Sequence)
	}
	if err := s.exec(ctx, tx, `
		UPDATE {outbox} AS e SET lane_id = v.lane_id, media_id = v.media_id, version = v.version,
			resources = v.resources, state = v.state, error_class = v.error_class,
			error_code = v.error_code, error = v.error, requeued = v.requeued,
			finished_at = CASE WHEN v.state = 'dead' THEN {now} END
		FROM {rows v(sequence bigint, lane_id bigint, media_id text, version bigint, resources text,
			state text, error_class text, error_code text, error text, requeued boolean)}
		WHERE e.sequence = v.sequence AND e.lane_id IS NULL`, assignments); err != nil {
		return err
	}
	if err := s.openCopies(ctx, tx, assignments, known, done); err != nil {
		return err
	}
	return s.wake(ctx, tx, ready, done)
}

func (s *Store) wake(ctx context.Context, tx *sqlx.Tx, ready map[int64]int64, done *Assigned) error {
	type woken struct {
		LaneID int64 `json:"lane_id"`
		Last   int64 `json:"last_sequence"`
	}
	var lanes []woken
	for laneID, highest := range ready {
		lanes = append(lanes, woken{laneID, highest})
		done.Lanes = append(done.Lanes, laneID)
	}
	if len(lanes) == 0 {
		return nil
	}
	return s.exec(ctx, tx, `
		UPDATE {lanes} AS l SET wake = wake + 1, ready_at = coalesce(ready_at, {now}),
			last_sequence = CASE WHEN v.last_sequence > l.last_sequence
				THEN v.last_sequence ELSE l.last_sequence END
		FROM {rows v(lane_id bigint, last_sequence bigint)} WHERE l.lane_id = v.lane_id`, lanes)
}

// openCopies notes each EnvironmentCreated for its snapshot, and closes the
// gate of its source: later events there begin after the snapshot.
func (s *Store) openCopies(ctx context.Context, tx *sqlx.Tx, assignments []*assignment,
	known map[environment]int64, done *Assigned) error {
	for _, a := range assignments {
		if a.created == nil {
			continue
		}
		done.Created = true
		source := known[environment{a.environment.serviceID, a.created.SourceEnvironmentID}]
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
			VALUES (?, ?, ?, ?, 'pending', {now}) ON CONFLICT (sequence) DO NOTHING`),
			a.Sequence, source, a.LaneID, a.created.EnvironmentServiceID); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			UPDATE {lanes} SET gate_sequence = ?, wake = wake + 1
			WHERE lane_id = ? AND (gate_sequence IS NULL OR gate_sequence > ?)`),
			a.Sequence, source, a.Sequence); err != nil {
			return err
		}
	}
	return nil
}

// laneIDs fills in the lanes of environments, and makes those that are new.
func (s *Store) laneIDs(ctx context.Context, tx *sqlx.Tx, known map[environment]int64) error {
	type row struct {
		ServiceID     string `db:"service_id" json:"service_id"`
		EnvironmentID string `db:"environment_id" json:"environment_id"`
		LaneID        int64  `db:"lane_id" json:"-"`
	}
	var unknown []row
	s.mu.Lock()
	for env := range known {
		if laneID, ok := s.lanes[env]; ok {
			known[env] = laneID
		} else {
			unknown = append(unknown, row{ServiceID: env.serviceID, EnvironmentID: env.environmentID})
		}
	}
	s.mu.Unlock()
	if len(unknown) == 0 {
		return nil
	}
	if err := s.exec(ctx, tx, `
		INSERT INTO {lanes} (service_id, environment_id) SELECT service_id, environment_id
		FROM {rows v(service_id text, environment_id text)} WHERE true
		ON CONFLICT (service_id, environment_id) DO NOTHING`, unknown); err != nil {
		return err
	}
	encoded, err := rows(unknown)
	if err != nil {
		return err
	}
	var found []row
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT l.service_id, l.environment_id, l.lane_id
		FROM {lanes} l JOIN {rows v(service_id text, environment_id text)}
		ON l.service_id = v.service_id AND l.environment_id = v.environment_id`), encoded); err != nil {
		return err
	}
	for _, r := range found {
		known[environment{r.ServiceID, r.EnvironmentID}] = r.LaneID
	}
	return nil
}

// lastSequences locks lanes in the one order that all do it in, and tells the
// highest sequence that each was ever given.
func (s *Store) lastSequences(ctx context.Context, tx *sqlx.Tx, known map[environment]int64) (map[int64]int64, error) {
	ids := slices.Sorted(maps.Values(known))
	encoded, err := rows(ids)
	if err != nil {
		return nil, err
	}
	var found []struct {
		LaneID int64 `db:"lane_id"`
		Last   int64 `db:"last_sequence"`
	}
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, last_sequence FROM {lanes} WHERE lane_id IN {ids} ORDER BY lane_id
		{for_no_key_update}`), encoded); err != nil {
		return nil, err
	}
	last := make(map[int64]int64, len(found))
	for _, lane := range found {
		last[lane.LaneID] = lane.Last
	}
	return last, nil
}
