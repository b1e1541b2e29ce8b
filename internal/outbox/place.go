package outbox

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// LaneState is a lane as an assigning look finds it.
type LaneState struct {
	Lane
	Wake             int64  `db:"wake"`
	Held             bool   `db:"held"`
	Gate             *int64 `db:"gate_sequence"`
	DeletedSequence  int64  `db:"deleted_sequence"`
	TaintedTo        int64  `db:"tainted_to"`
	SnapshotSequence int64  `db:"snapshot_sequence"`
	Emptying         *int64 `db:"emptying_sequence"`
	Holds            bool   `db:"holds"`
	// LeasedBy names the lane's holder, whose lease may have lapsed.
	LeasedBy *string `db:"leased_by"`
	Lapsed   bool    `db:"lapsed"`
	// Idle: nothing waits in it to be read.
	Idle bool `db:"idle"`
	// Copying tells that a copy from or into the environment isn't ended.
	Copying bool `db:"copying"`
}

// Free tells whether a worker may lease the lane to take its events at once:
// nobody has it, and nothing in it or about it must be looked up first.
func (l *LaneState) Free() bool { return l.LeasedBy == nil && l.Idle && l.plain() }

// Current tells whether a holder that has read its lane to the end as of that
// wake count may take further events.
func (l *LaneState) Current(token, wake int64) bool {
	return l.Token == token && l.Wake == wake && l.plain()
}

func (l *LaneState) plain() bool {
	return !l.Held && l.Gate == nil && l.Emptying == nil && !l.Holds && !l.Copying && l.LapseCount == 0
}

func (l *LaneState) status() Status {
	return Status{
		LaneID: l.LaneID, Token: l.Token, Wake: l.Wake, Held: l.Held, Gate: l.Gate,
		DeletedSequence: l.DeletedSequence, TaintedTo: l.TaintedTo, SnapshotSequence: l.SnapshotSequence,
		Holds: l.Holds,
	}
}

// place decides what becomes of the events that were found, writes those that
// stay in the database, and leases lanes for those that are taken.
func (s *Store) place(ctx context.Context, tx *sqlx.Tx, b *batch) error {
	for _, a := range b.found {
		b.known[a.environment] = 0
		if a.created != nil {
			b.known[a.source()] = 0
		}
	}
	if err := s.laneIDs(ctx, tx, b.known); err != nil {
		return err
	}
	lanes, now, err := s.laneStates(ctx, tx, slices.Sorted(maps.Values(b.known)))
	if err != nil {
		return err
	}
	b.lost = s.lost(lanes)
	p := &placing{batch: b, lanes: lanes, now: now, behind: make(map[int64]bool), beyond: make(map[int64]bool)}
	if b.look.Take != nil {
		p.room = b.look.Take()
	}
	for _, a := range b.found {
		a.event.LaneID = b.known[a.environment]
		p.decide(a)
	}
	// What follows taken events in lanes that nobody holds is written once those
	// are leased: whoever else leased them would begin with it.
	free := p.free()
	following, written := split(p.written, func(a *assignment) bool { return slices.Contains(free, a.event.LaneID) })
	p.written = written
	moved, err := s.moved(ctx, tx, p)
	if err != nil {
		return err
	}
	if len(moved)+len(p.lost) > 0 && len(p.copying) > 0 { // a snapshot must see all that comes before it
		p.refused = p.found
		return nil
	}
	refused, written := split(p.written, func(a *assignment) bool { return moved[a.event.LaneID] })
	p.refused, p.written = append(p.refused, refused...), written
	if err := s.write(ctx, tx, p.written, toBeRead); err != nil {
		return err
	}
	if err := s.openCopies(ctx, tx, p); err != nil {
		return err
	}
	if err := s.take(ctx, tx, p, free, following); err != nil {
		return err
	}
	for _, a := range p.written {
		if a.State == Dead {
			continue
		}
		b.done.Written = append(b.done.Written, a.event.LaneID)
		if lanes[a.event.LaneID].Held {
			b.done.Held++
		}
	}
	return nil
}

// placing is the state of deciding, event by event in their sequence.
type placing struct {
	*batch
	lanes map[int64]*LaneState
	now   int64
	// room tells whether the worker takes an event of a lane; nil if it takes none.
	room func(*LaneState) bool
	// behind: a written event of the lane comes first and must be read first.
	behind map[int64]bool
	// beyond: an earlier event of the lane is left for its holder.
	beyond         map[int64]bool
	taken, written []*assignment
}

func (p *placing) decide(a *assignment) {
	lane := p.lanes[a.event.LaneID]
	_, lost := p.lost[lane.LaneID]
	switch {
	case lost:
		p.refused = append(p.refused, a)
	case a.State == Dead:
		p.written = append(p.written, a)
	case p.copying[a.environment]:
		p.behind[lane.LaneID] = true
		p.written = append(p.written, a)
	case p.hidden[a.environment]:
	case p.takes(lane, a):
		p.taken = append(p.taken, a)
	case p.look.Ahead && lane.Held:
		p.hidden[a.environment], p.held[a.environment] = true, true
	case p.look.Ahead && p.heldByOther(lane):
		p.hidden[a.environment] = true
	case p.leaves(lane, a):
		p.beyond[lane.LaneID] = true
		p.done.Left++
		if p.left == 0 {
			p.left = a.Sequence
		}
	default:
		p.behind[lane.LaneID] = true
		p.written = append(p.written, a)
	}
}

func (p *placing) takes(lane *LaneState, a *assignment) bool {
	return p.room != nil && !p.behind[lane.LaneID] && a.order[0] != Everything && p.room(lane)
}

// leaves tells whether the event is left for another worker, which holds the
// lane, to find: for a while, and not behind one that is written. What follows
// it is left, too, whatever the clock said when that was published.
func (p *placing) leaves(lane *LaneState, a *assignment) bool {
	return !p.all && !p.behind[lane.LaneID] && p.heldByOther(lane) &&
		(p.beyond[lane.LaneID] || a.event.CreatedAt > p.now-leaveFor.Microseconds())
}

func (p *placing) heldByOther(lane *LaneState) bool {
	return lane.LeasedBy != nil && *lane.LeasedBy != p.look.Worker && !lane.Lapsed
}

// leaveFor is how long another worker has to find and end an event of a lane
// that it holds, before whoever looks assigns it.
const leaveFor = time.Second / 5

// laneStateColumns are of a lane l.
const laneStateColumns = `l.lane_id, l.service_id, l.environment_id, l.lease_token, l.read_from, l.lapse_count,
	l.wake, l.held, l.gate_sequence, l.deleted_sequence, l.tainted_to, l.snapshot_sequence, l.emptying_sequence, l.leased_by,
	l.ready_at IS NULL AS idle, coalesce(l.leased_until < {now}, false) AS lapsed,
	EXISTS (SELECT 1 FROM {holds} h WHERE h.lane_id = l.lane_id) AS holds,
	EXISTS (SELECT 1 FROM {copies} c WHERE c.source_lane = l.lane_id AND c.state <> 'ended')
		OR EXISTS (SELECT 1 FROM {copies} c WHERE c.target_lane = l.lane_id AND c.state <> 'ended') AS copying`

func (s *Store) laneStates(ctx context.Context, tx *sqlx.Tx, ids []int64) (map[int64]*LaneState, int64, error) {
	encoded, err := rows(ids)
	if err != nil {
		return nil, 0, err
	}
	var found []struct {
		LaneState
		Now int64 `db:"now"`
	}
	if err := tx.SelectContext(ctx, &found, s.db.SQL(`
		SELECT `+laneStateColumns+`, {now} AS now
		FROM {lanes} l WHERE lane_id {in_ids}`), encoded); err != nil {
		return nil, 0, err
	}
	lanes := make(map[int64]*LaneState, len(found))
	var now int64
	for i := range found {
		lanes[found[i].LaneID], now = &found[i].LaneState, found[i].Now
	}
	return lanes, now, nil
}

// free are the lanes of taken events that nobody holds.
func (p *placing) free() []int64 {
	var free []int64
	for _, a := range p.taken {
		if p.lanes[a.event.LaneID].LeasedBy == nil {
			free = append(free, a.event.LaneID)
		}
	}
	slices.Sort(free)
	return slices.Compact(free)
}

// take leases the free lanes of taken events, and writes what follows there.
// What can't be leased at once is found again by the next look.
func (s *Store) take(ctx context.Context, tx *sqlx.Tx, p *placing, free []int64, following []*assignment) error {
	claimed, err := s.claim(ctx, tx, p, free)
	if err != nil {
		return err
	}
	for _, l := range claimed {
		state := p.lanes[l.LaneID]
		state.Lane, state.LeasedBy = l, &p.look.Worker
		p.done.Claimed = append(p.done.Claimed, state)
	}
	refused := func(a *assignment) bool { return p.lanes[a.event.LaneID].LeasedBy == nil }
	later, taken := split(p.taken, refused)
	laterToo, following := split(following, refused)
	p.refused = slices.Concat(p.refused, later, laterToo)
	for _, a := range taken {
		p.done.Taken = append(p.done.Taken, a.taken(p.lanes[a.event.LaneID].Token))
	}
	p.written = append(p.written, following...)
	return s.write(ctx, tx, following, toBeRead)
}

func split(list []*assignment, in func(*assignment) bool) (those, others []*assignment) {
	for _, a := range list {
		if in(a) {
			those = append(those, a)
		} else {
			others = append(others, a)
		}
	}
	return those, others
}

// taken is the event with what assigning would write of it, under that lease.
func (a *assignment) taken(token int64) *Event {
	a.event.Taken, a.event.MediaID, a.event.Version, a.event.Resources = true, a.MediaID, a.Version, a.Resources
	a.event.token = token
	return a.event
}

// moved locks the lanes that are written to, in the order of all who lock several,
// and tells which of them have got another holder since the look saw them. Nothing
// is put there: that holder must first find what comes before, which may be in
// this worker's memory.
func (s *Store) moved(ctx context.Context, tx *sqlx.Tx, p *placing) (map[int64]bool, error) {
	lanes := make(map[int64]bool)
	for _, a := range p.written {
		lanes[a.event.LaneID] = true
		if a.created != nil {
			lanes[p.known[a.source()]] = true // openCopies
		}
	}
	moved := make(map[int64]bool)
	if len(lanes) == 0 {
		return moved, nil
	}
	locked, err := s.lockWritten(ctx, tx, slices.Sorted(maps.Keys(lanes)))
	for laneID, l := range locked {
		if l.Token != p.lanes[laneID].Token {
			moved[laneID] = true
		}
	}
	return moved, err
}

// claim leases lanes that nobody has had since the look saw them.
func (s *Store) claim(ctx context.Context, tx *sqlx.Tx, p *placing, free []int64) ([]Lane, error) {
	if len(free) == 0 {
		return nil, nil
	}
	type seen struct {
		LaneID int64 `json:"lane_id"`
		Token  int64 `json:"lease_token"`
	}
	list := make([]seen, len(free))
	for i, laneID := range free {
		list[i] = seen{laneID, p.lanes[laneID].Token}
	}
	encoded, err := rows(list)
	if err != nil {
		return nil, err
	}
	var claimed []Lane
	err = tx.SelectContext(ctx, &claimed, s.leaseThose(`
		SELECT l.lane_id FROM {lanes} l JOIN {rows v(lane_id bigint, lease_token bigint)}
		ON l.lane_id = v.lane_id AND l.lease_token = v.lease_token
		WHERE l.ready_at IS NULL AND l.leased_by IS NULL AND NOT l.held
			AND l.gate_sequence IS NULL AND l.emptying_sequence IS NULL
		ORDER BY l.lane_id `+s.skipLocked("l")), p.look.Worker, p.look.Lease.Microseconds(), encoded)
	return claimed, err
}

// news tells whether lanes get something that their holders must read.
type news bool

const (
	toBeRead news = true
	inMemory news = false
)

// write puts events into their lanes, and wakes those that have something new
// to read.
func (s *Store) write(ctx context.Context, tx *sqlx.Tx, written []*assignment, news news) error {
	if len(written) == 0 {
		return nil
	}
	// In their sequence, as everybody: who settles some of them would else wait
	// for us while we wait for him.
	slices.SortFunc(written, func(a, b *assignment) int { return cmp.Compare(a.Sequence, b.Sequence) })
	lanes := make(map[int64]int64) // highest sequence to be read, 0 if none
	for _, a := range written {
		lanes[a.event.LaneID] = max(lanes[a.event.LaneID], 0)
		if a.State != Dead {
			lanes[a.event.LaneID] = max(lanes[a.event.LaneID], a.Sequence)
		}
	}
	locked, err := s.lockWritten(ctx, tx, slices.Sorted(maps.Keys(lanes)))
	if err != nil {
		return err
	}
	for _, a := range written {
		a.LaneID = a.event.LaneID
		a.Requeued = a.State != Dead && a.Sequence < locked[a.LaneID].Last
	}
	if err := s.exec(ctx, tx, `
		UPDATE {outbox} AS e SET lane_id = v.lane_id, media_id = v.media_id, version = v.version,
			resources = v.resources, state = v.state, error_class = v.error_class,
			error_code = v.error_code, error = v.error, requeued = v.requeued,
			finished_at = CASE WHEN v.state = 'dead' THEN {now} END
		FROM {rows v(sequence bigint, lane_id bigint, media_id text, version bigint, resources text,
			state text, error_class text, error_code text, error text, requeued boolean)}
		WHERE e.sequence = v.sequence AND `+database.Unplanned(`e.lane_id IS NULL`), written); err != nil {
		return err
	}
	type woken struct {
		LaneID int64 `json:"lane_id"`
		Last   int64 `json:"last_sequence"`
	}
	var wakes []woken
	for laneID, highest := range lanes {
		if highest > 0 {
			wakes = append(wakes, woken{laneID, highest})
		}
	}
	if len(wakes) == 0 {
		return nil
	}
	wake := `wake = wake + 1, ready_at = coalesce(ready_at, {now}),`
	if news == inMemory {
		wake = ``
	}
	return s.exec(ctx, tx, `
		UPDATE {lanes} AS l SET `+wake+` last_sequence = CASE WHEN v.last_sequence > l.last_sequence
				THEN v.last_sequence ELSE l.last_sequence END
		FROM {rows v(lane_id bigint, last_sequence bigint)} WHERE l.lane_id = v.lane_id`, wakes)
}

// Write assigns events that the worker has taken, and has not finished: so that
// operators see where they belong, and that snapshots and successors find
// them. The worker needn't read what it has; who is given the lane does. It
// changes nothing about events of lanes that the worker has lost.
func (s *Store) Write(ctx context.Context, held []Holding, taken []*Event) error {
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		leases, err := s.fence(ctx, tx, held, exclusive)
		if err != nil {
			return err
		}
		return s.writeTaken(ctx, tx, stillHeld(taken, held, leases), inMemory)
	})
	if err != nil {
		return fmt.Errorf("assign events that take long: %w", err)
	}
	return nil
}

// writeTaken assigns taken events, whose lanes the caller has locked. Events
// that were read from their lanes are there already.
func (s *Store) writeTaken(ctx context.Context, tx *sqlx.Tx, events []*Event, news news) error {
	var list []*assignment
	for _, e := range events {
		if e.Taken {
			list = append(list, &assignment{
				Sequence: e.Sequence, State: Available, MediaID: e.MediaID, Version: e.Version, Resources: e.Resources, event: e,
			})
		}
	}
	return s.write(ctx, tx, list, news)
}
