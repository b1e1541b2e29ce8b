package outbox

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// pass is a walk, a stretch with each look ahead, over the events that the
// worker has no room for: what one customer publishes must not hide what
// another does. It writes nothing about what it walks over, and finds the
// events of all who have little to do.
//
// Within an environment nothing may be found before what comes first. So one
// of which an event was walked over stays hidden until the next pass, which
// begins where ordinary looks do.
type pass struct {
	walk    sweep
	hidden  map[environment]bool
	stretch int
	// complete: the last look has come to the end.
	complete bool
	began    time.Time
	spent    time.Duration // on looks
}

const (
	// passStretch is how many events a look ahead walks over at first: that
	// takes some milliseconds.
	passStretch = 10_000
	// passShare is how many times longer than it took so far a pass is relied
	// on, and than one of its looks took the next one is waited for.
	// Where slots are free, a pass is begun again as soon as it has ended.
	passShare = 4
)

// over tells whether to begin again: the end was reached, and an environment is
// hidden of which the worker could do more.
func (p *pass) over(now time.Time, look Look) bool {
	if !p.complete || !look.Hungry && now.Sub(p.began) < max(fullEvery, passShare*p.spent) {
		return false
	}
	for env := range p.hidden {
		if !look.Enough(env.serviceID, env.environmentID) {
			return true
		}
	}
	return false
}

// assignAhead is Assign for a look ahead.
func (s *Store) assignAhead(ctx context.Context, look Look) (Assigned, error) {
	now := time.Now()
	s.mu.Lock()
	p := s.pass
	s.mu.Unlock()
	over := p == nil || p.over(now, look) // asks the worker, which may be asking us
	s.mu.Lock()
	if over || s.pass != p { // or something was let go just now
		p = &pass{hidden: make(map[environment]bool), stretch: s.stretch, began: now}
	}
	p.walk.passed = max(p.walk.passed, s.sweep.passed)
	s.pass = p
	s.mu.Unlock()

	b, err := s.assign(ctx, look, func(tx *sqlx.Tx, b *batch) error {
		b.hidden = make(map[environment]bool)
		return s.findAhead(ctx, tx, b, p)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || b.done.Busy || s.pass != p { // else something is to be found again
		s.findAgain(b)
		return b.done, err
	}
	for env := range b.hidden {
		p.hidden[env] = true
	}
	before := p.walk.passed
	p.walk.looked(b.open, b.highest, !b.done.More)
	p.walk.saw(b.top)
	p.complete = !b.done.More
	switch {
	case p.walk.passed > before:
		p.stretch = s.stretch
	case !p.complete:
		p.stretch *= 2 // a publisher's transaction is open for long: what it may add is looked for from the same place
	}
	p.spent += time.Since(now)
	s.findAgain(b)
	return b.done, nil
}

// lastGiven is the last sequence that was given to an event, committed or not.
func (s *Store) lastGiven(ctx context.Context, tx *sqlx.Tx) (last int64, err error) {
	query := `SELECT last_value FROM {outbox_sequence_seq}`
	if s.db.Dialect == database.SQLite {
		query = `SELECT coalesce(max(sequence), 0) FROM {outbox}`
	}
	err = tx.GetContext(ctx, &last, s.db.SQL(query))
	return last, err
}

// findAhead walks over a stretch of events, and reads those of environments
// that are not hidden and of which the worker doesn't have enough. Snapshots
// come in their turn, when ordinary looks find them: until then, both
// environments are hidden.
func (s *Store) findAhead(ctx context.Context, tx *sqlx.Tx, b *batch, p *pass) error {
	after := p.walk.passed
	carried := b.look.Carried(after)
	without, err := rows(carried)
	if err != nil {
		return err
	}
	hidden := make([]environmentRow, 0, len(p.hidden))
	for env := range p.hidden {
		hidden = append(hidden, environmentRow{env.serviceID, env.environmentID})
	}
	hiddenRows, err := rows(hidden)
	if err != nil {
		return err
	}
	var walked []struct {
		environmentRow
		Total   bool  `db:"total"` // the last row: how many were walked over, and up to where
		Count   int   `db:"count"`
		Highest int64 `db:"highest"`
	}
	if err := tx.SelectContext(ctx, &walked, s.db.SQL(`
		WITH walked AS MATERIALIZED (SELECT sequence, service_id, environment_id FROM {outbox}
			WHERE lane_id IS NULL AND sequence > ? ORDER BY sequence LIMIT ?)
		SELECT DISTINCT service_id, environment_id, false AS total, 0 AS count, 0 AS highest FROM walked
			WHERE sequence NOT IN {ids} AND (service_id, environment_id) NOT IN `+environmentList+`
		UNION ALL SELECT '', '', true, count(*), coalesce(max(sequence), 0) FROM walked`),
		after, p.stretch, without, hiddenRows); err != nil {
		return err
	}
	wanted := []environmentRow{}
	for _, w := range walked {
		switch env := (environment{w.ServiceID, w.EnvironmentID}); {
		case w.Total:
			b.highest, b.done.More = w.Highest, w.Count == p.stretch
		case b.look.Enough(env.serviceID, env.environmentID):
			b.hidden[env] = true
		default:
			wanted = append(wanted, w.environmentRow)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	to := b.highest
	b.highest = 0
	if err := s.selectFresh(ctx, tx, b, after, to, b.look.Most, carried, wanted); err != nil {
		return err
	}
	if len(b.found) == b.look.Most {
		b.done.More = true
	} else {
		b.highest = to
	}
	for _, a := range b.found {
		if a.created != nil {
			b.hidden[a.environment] = true
			b.hidden[environment{a.environment.serviceID, a.created.SourceEnvironmentID}] = true
		}
	}
	return nil
}
