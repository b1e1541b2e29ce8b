package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// assignBatch bounds one transaction of assigning.
const assignBatch = 1000

// Look is a search for newly committed events. Its zero value writes all that
// it finds into their lanes.
type Look struct {
	// Worker and Lease are used to lease a lane that nobody holds.
	Worker string
	Lease  time.Duration
	// Most bounds the events; 0 means a batch.
	Most int
	// Carried lists the events above a sequence that the worker took before
	// and that were not written since.
	Carried func(after int64) []int64
	// Take begins to decide which events the worker takes, each by its lane as it
	// stands in the database; a look that is tried again begins anew. Where it is
	// nil, none is taken.
	Take func() func(lane *LaneState) bool
	// Ahead makes it a look past what there is no room for (see pass). Enough
	// tells of an environment that the worker has enough of its events, and
	// Hungry that slots are free which what is in memory can't use.
	Ahead  bool
	Enough func(serviceID, environmentID string) bool
	Hungry bool
}

// Assigned says what one call of Assign did.
type Assigned struct {
	// Busy tells that another worker was assigning: nothing was done.
	Busy bool
	// Written has the lanes that got events which wait there to be read.
	Written []int64
	// Held counts those of them whose lanes are held: nobody reads them for now.
	Held int
	// Taken has the events that the worker took, in sequence. They are not
	// assigned in the database: that is done when they end or, by Write, when
	// they take long. Claimed has the lanes that were leased for some.
	Taken   []*Event
	Claimed []*LaneState
	// Lost has the lanes of which the worker took events before, and that are no
	// longer its own: it has to let those events go before it looks again.
	Lost []Holding
	// Left counts the events that were left for other workers: looks find them
	// until those have ended them, or it takes too long.
	Left int
	// Created tells that an EnvironmentCreated is among them: its snapshot is due.
	Created bool
	// More tells that there may be further events to assign. AtEnd tells of a
	// look ahead that it goes on with what is published next.
	More, AtEnd bool
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

	event       *Event
	environment environment
	order       []string // resources
	created     *events.EnvironmentCreated
}

// Assign finds newly committed events, in sequence. The worker takes those
// that it has room for, of lanes that it holds and has read to their end, or
// that nobody holds; the others are put into their lanes. Those of lanes that
// another worker holds are left for that worker to find, but for a while only.
// An event that can't be understood becomes dead with its reason. One worker
// assigns at a time; the others return at once with nothing done.
func (s *Store) Assign(ctx context.Context, look Look) (Assigned, error) {
	if look.Most == 0 {
		look.Most = s.batch
	}
	if look.Ahead {
		return s.assignAhead(ctx, look)
	}
	s.mu.Lock()
	after := s.sweep.passed
	s.mu.Unlock()
	b, err := s.assign(ctx, look, func(tx *sqlx.Tx, b *batch) error { return s.find(ctx, tx, b, after) })
	if err != nil || b.done.Busy {
		return b.done, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	highest, complete := b.highest, !b.done.More
	if b.left > 0 {
		// Whoever holds their lanes may give those back before looking.
		highest, complete = min(highest, b.left-1), false
	}
	s.sweep.looked(b.open, highest, complete)
	if complete {
		s.pass = nil // nothing is left that it walked over
	}
	s.findAgain(b)
	return b.done, nil
}

// assign finds events and places them, in one transaction of the one worker
// that assigns.
func (s *Store) assign(ctx context.Context, look Look, find func(*sqlx.Tx, *batch) error) (*batch, error) {
	var b *batch
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		b = &batch{look: look, all: look.Worker == "", known: make(map[environment]int64), copying: make(map[environment]bool), done: Assigned{Busy: true}}
		if look.Ahead {
			top, err := s.lastGiven(ctx, tx)
			if err != nil {
				return err
			}
			b.top = top
		}
		mine, open, err := s.assigner(ctx, tx)
		if err != nil || !mine {
			return err
		}
		b.open, b.done.Busy = open, false
		if err := find(tx, b); err != nil || len(b.found) == 0 {
			return err
		}
		return s.place(ctx, tx, b)
	})
	if err != nil {
		return &batch{}, fmt.Errorf("assign events to lanes: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for env, laneID := range b.known {
		s.lanes[env] = laneID
	}
	s.note(b.done.Taken)
	return b, nil
}

// note remembers under which leases events were taken. The mutex is held.
func (s *Store) note(taken []*Event) {
	for _, e := range taken {
		s.took[e.LaneID] = e.token
	}
}

// lost are those of the lanes that have had another holder since events of them
// were taken. What becomes of those events is not for this worker any more, and
// its looks have passed them: they must find them again before they put anything
// there that comes after.
func (s *Store) lost(lanes map[int64]*LaneState) map[int64]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := make(map[int64]int64)
	for laneID, l := range lanes {
		if token, took := s.took[laneID]; took && token != l.Token {
			lost[laneID] = token
		}
	}
	return lost
}

// findAgain makes the next look find what could not be taken. The mutex is held.
func (s *Store) findAgain(b *batch) {
	for laneID, token := range b.lost {
		delete(s.took, laneID)
		s.refind(0)
		b.done.Lost, b.done.More = append(b.done.Lost, Holding{LaneID: laneID, Token: token}), true
	}
	for _, a := range b.refused {
		s.refind(a.Sequence)
		b.done.More = true
	}
}

// AssignAll puts all newly committed events into their lanes, those that
// workers have taken included.
func (s *Store) AssignAll(ctx context.Context) error {
	const pause = 5 * time.Millisecond
	for {
		s.Refind(0)
		done, err := s.Assign(ctx, Look{})
		if err != nil || !done.Busy && !done.More {
			return err
		}
		if done.Busy {
			wait(ctx, pause)
		}
	}
}

// Refind makes the next look begin at that sequence: a taken event was let go.
// 0 is before all.
func (s *Store) Refind(sequence int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refind(sequence)
}

// refind is Refind; the mutex is held.
func (s *Store) refind(sequence int64) {
	s.sweep.back(sequence)
	s.pass = nil
}

// FindLost makes the next look begin earlier where an event is unassigned that
// looks have passed, and the worker doesn't carry. It tells whether there is one:
// what a worker had taken that died while no other knew of it, or an event whose
// sequence was given out of turn. It walks over what the database has not yet
// cleaned up, and so takes the longer the more was published lately.
func (s *Store) FindLost(ctx context.Context, carried func(after int64) []int64) (bool, error) {
	s.mu.Lock()
	passed := s.sweep.passed
	s.mu.Unlock()
	without, err := rows(carried(0))
	if err != nil {
		return false, err
	}
	var lost []int64
	if err := s.db.SelectContext(ctx, &lost, s.db.SQL(`
		SELECT sequence FROM {outbox} WHERE lane_id IS NULL AND sequence <= ? AND sequence NOT IN {ids}
		ORDER BY sequence LIMIT 1`), passed, without); err != nil {
		return false, fmt.Errorf("look for lost events: %w", err)
	}
	// One that a look was just bringing is carried by now.
	if len(lost) == 0 || slices.Contains(carried(lost[0]-1), lost[0]) {
		return false, nil
	}
	s.Refind(lost[0])
	return true, nil
}

// batch is what one look found, and what becomes of it.
type batch struct {
	look    Look
	all     bool // nothing is left for other workers
	known   map[environment]int64
	found   []*assignment
	highest int64
	left    int64         // the first event that is for another worker to find; 0 if none
	refused []*assignment // could not be placed after all
	// lost has the lanes that have had another holder since the worker took
	// events of them, by the token that it had.
	lost map[int64]int64
	// copying has the environments of events that create one. All that is found
	// of them is written.
	copying map[environment]bool
	// open has the transactions that had written to the outbox, and had not
	// ended, before anything was found.
	open []string
	// hidden has the environments of which a look ahead walks over an event, held
	// those of them whose lanes are, and top the last sequence that was given
	// before open was read.
	hidden, held map[environment]bool
	top          int64
	done         Assigned
}

// find reads events that are not assigned.
func (s *Store) find(ctx context.Context, tx *sqlx.Tx, b *batch, after int64) error {
	carried := []int64{}
	if b.look.Carried != nil {
		carried = b.look.Carried(after)
	}
	if err := s.selectFresh(ctx, tx, b, after, math.MaxInt64, b.look.Most, carried, nil); err != nil {
		return err
	}
	b.done.More = len(b.found) == b.look.Most
	found := b.found
	if err := s.findForCopies(ctx, tx, b, found); err != nil || len(b.copying) == 0 {
		return err
	}
	// What else there is of those environments comes after it.
	b.done.More = true
	for _, a := range found {
		if !b.copying[a.environment] {
			b.found = append(b.found, a)
		}
	}
	return nil
}

// findForCopies finds, where events that create environments are among those,
// them and what comes before them in both their environments, to be written: a
// snapshot looks for unfinished earlier events in the database, and those that
// workers have taken must be there, too. Where it is much, a batch is found,
// and the next look goes on.
func (s *Store) findForCopies(ctx context.Context, tx *sqlx.Tx, b *batch, among []*assignment) error {
	last := int64(0)
	for _, a := range among {
		if a.created != nil {
			b.copying[a.environment] = true
			b.copying[a.source()] = true
			last = max(last, a.Sequence)
		}
	}
	if len(b.copying) == 0 {
		return nil
	}
	return s.selectFresh(ctx, tx, b, 0, last, s.batch, nil, environmentRows(maps.Keys(b.copying)))
}

// unassigned selects events above one sequence, and up to another, given twice.
// The second bound is spelled as a row's so that the planner doesn't take the two
// for a narrow range: it would walk the primary key, over all that has ended,
// where the index of what is unassigned has next to nothing.
const unassigned = `lane_id IS NULL AND sequence > ? AND (sequence, sequence) <= (?, ?)`

// freshColumns are what assigning an event must know of it.
const freshColumns = `sequence, CAST(event_id AS text) AS event_id, type, service_id, environment_id, data, metadata, created_at`

// selectFresh reads events above one sequence and up to another, but for those
// that are carried; of some environments, or of all where that is nil.
func (s *Store) selectFresh(ctx context.Context, tx *sqlx.Tx, b *batch, after, to int64, most int, carried []int64,
	of []environmentRow) error {
	if carried == nil {
		carried = []int64{} // nil would be encoded as null
	}
	without, err := rows(carried)
	if err != nil {
		return err
	}
	condition, args := ``, []any{after, to, to, without}
	if of != nil {
		encoded, err := rows(of)
		if err != nil {
			return err
		}
		condition, args = ` AND (service_id, environment_id) IN `+environmentList, append(args, encoded)
	}
	var fresh []*Event
	if err := tx.SelectContext(ctx, &fresh, s.db.SQL(`
		SELECT `+freshColumns+` FROM {outbox}
		WHERE `+unassigned+` AND sequence NOT IN {ids}`+condition+`
		ORDER BY sequence LIMIT ?`), append(args, most)...); err != nil {
		return err
	}
	b.found, b.highest = make([]*assignment, len(fresh)), 0
	for i, e := range fresh {
		b.found[i] = assign(e)
		b.highest = max(b.highest, e.Sequence)
	}
	return nil
}

// source is the environment that an event which creates one copies.
func (a *assignment) source() environment {
	return environment{a.environment.serviceID, a.created.SourceEnvironmentID}
}

// assign reads what a lane needs to know of an event off its payload.
func assign(event *Event) *assignment {
	a := &assignment{
		Sequence:    event.Sequence,
		State:       Available,
		Resources:   "[]",
		event:       event,
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
	event.parsed = parsed
	order := []string{}
	if media := parsed.Media(); media != "" {
		a.MediaID = &media
		order = append(order, MediaResource(media))
	}
	for _, name := range parsed.FileNames() {
		order = append(order, NameResource(name))
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
	a.order, a.Resources = order, mustJSON(order)
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

// openCopies notes each EnvironmentCreated for its snapshot, and closes the
// gate of its source: later events there begin after the snapshot.
func (s *Store) openCopies(ctx context.Context, tx *sqlx.Tx, p *placing) error {
	for _, a := range p.written {
		if a.created == nil {
			continue
		}
		p.done.Created = true
		source := p.known[a.source()]
		if _, err := tx.ExecContext(ctx, s.db.SQL(`
			INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
			VALUES (?, ?, ?, ?, 'pending', {now}) ON CONFLICT (sequence) DO NOTHING`),
			a.Sequence, source, a.event.LaneID, a.created.EnvironmentServiceID); err != nil {
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

// laneOf is the lane of an environment, 0 where it isn't known.
func (s *Store) laneOf(serviceID, environmentID string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[environment{serviceID, environmentID}]
}

// laneIDs fills in the lanes of environments, and makes those that are new.
func (s *Store) laneIDs(ctx context.Context, tx *sqlx.Tx, known map[environment]int64) error {
	type row struct {
		environmentRow
		LaneID int64 `db:"lane_id" json:"-"`
	}
	var unknown []row
	s.mu.Lock()
	for env := range known {
		if laneID, ok := s.lanes[env]; ok {
			known[env] = laneID
		} else {
			unknown = append(unknown, row{environmentRow: environmentRow{env.serviceID, env.environmentID}})
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

// written is a lane that is locked for being written to.
type written struct {
	LaneID int64 `db:"lane_id"`
	Token  int64 `db:"lease_token"`
	// Last is the highest sequence that it was ever given.
	Last int64 `db:"last_sequence"`
}

// lockWritten locks lanes in the one order that all do it in.
func (s *Store) lockWritten(ctx context.Context, tx *sqlx.Tx, lanes []int64) (map[int64]written, error) {
	ids, err := rows(lanes)
	if err != nil {
		return nil, err
	}
	var found []written
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT lane_id, lease_token, last_sequence FROM {lanes} WHERE lane_id {in_ids} ORDER BY lane_id
		{for_no_key_update}`), ids); err != nil {
		return nil, err
	}
	locked := make(map[int64]written, len(found))
	for _, lane := range found {
		locked[lane.LaneID] = lane
	}
	return locked, nil
}
