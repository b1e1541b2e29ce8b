package outbox

import (
	"context"
	"maps"
	"math"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

// pass is a walk, a stretch with each look ahead, over the events that the
// worker has no room for: what one customer publishes must not hide what
// another does. It writes nothing about what it walks over, and finds the
// events of all who have little to do. At its end it waits for what is
// published next.
//
// Within an environment nothing may be found before what comes first. So one
// of which an event was walked over is hidden from then on. Once the worker
// could do more of it, the pass goes back to where that began. One whose lane is
// held is walked over, too, and looked at again now and then.
type pass struct {
	walk sweep
	// stretch is how many events the next look of it walks over, usual how many
	// any look does.
	stretch, usual int
	// complete: the walk has come to the end.
	complete bool
	// hidden has the sequences above which to look for events of environments
	// that the walk goes past.
	hidden map[environment]int64
	// held has when those of them were looked at whose lanes were held.
	held map[environment]time.Time
	// back is the way back that is under way, nil if none is. Every other look
	// goes on with it, the others with the walk.
	back   *wayBack
	backed bool
	// wentBack is when the last one ended, and spent how long its looks took.
	wentBack time.Time
	spent    time.Duration
}

// wayBack looks for the events of some hidden environments, up to where the
// walk is. All that is visible below that was when the walk went by.
type wayBack struct {
	passed int64
	of     map[environment]bool
	spent  time.Duration
}

const (
	// passStretch is how many events a look ahead walks over at first: that
	// takes some milliseconds.
	passStretch = 10_000
	// passShare is how many times longer than it took the next look of a walk is
	// waited for, and backShare after a way back the next one. Where slots are
	// free, neither is; else who is hidden has had much, and its turn comes with
	// ordinary looks.
	passShare = 4
	backShare = 20
	// heldPause is how long an environment whose lane was held isn't gone back for.
	heldPause = time.Second
)

// goesBack tells whether this look is one of a way back. It begins one where
// environments are hidden of which the worker could do more.
func (p *pass) goesBack(now time.Time, look Look) bool {
	if p.back == nil {
		p.back = p.wayBack(now, look)
	}
	p.backed = p.back != nil && !p.backed
	return p.backed
}

// wayBack is one that is due, or nil.
func (p *pass) wayBack(now time.Time, look Look) *wayBack {
	if !look.Hungry && (!p.complete || now.Sub(p.wentBack) < p.backPause()) {
		return nil
	}
	back := &wayBack{passed: p.walk.passed, of: make(map[environment]bool)}
	for env, after := range p.hidden {
		if now.Sub(p.held[env]) >= heldPause && !look.Enough(env.serviceID, env.environmentID) {
			back.of[env], back.passed = true, min(back.passed, after)
		}
	}
	if len(back.of) == 0 {
		return nil
	}
	return back
}

// backPause is how long after a way back the next one is due. One from nearby
// costs little.
func (p *pass) backPause() time.Duration {
	const nearby = 10 * time.Millisecond
	if p.spent < nearby {
		return passShare * p.spent
	}
	return backShare * p.spent
}

// stretch is a part of the outbox that one look ahead walks over: of the
// environments of a way back, or of all that are not hidden.
type stretch struct {
	after, to int64
	most      int
	only      bool
	list      []environmentRow
}

func (p *pass) next(back bool) stretch {
	if back {
		return stretch{
			after: p.back.passed, to: p.walk.passed, most: p.usual,
			only: true, list: environmentRows(maps.Keys(p.back.of)),
		}
	}
	return stretch{after: p.walk.passed, to: math.MaxInt64, most: p.stretch, list: environmentRows(maps.Keys(p.hidden))}
}

// hide notes the environments that a look from there walked over. One that is
// hidden since earlier stays so, unless a way back has found all of it up to there.
func (p *pass) hide(b *batch, from int64, found map[environment]bool) {
	for env := range b.hidden {
		if since, hidden := p.hidden[env]; !hidden || from < since || found[env] {
			p.hidden[env] = from
		}
	}
	for env := range b.held {
		p.held[env] = time.Now()
	}
}

// walked notes a look of the walk.
func (p *pass) walked(b *batch) {
	before := p.walk.passed
	p.hide(b, before, nil)
	p.walk.looked(b.open, b.highest, !b.done.More)
	p.walk.saw(b.top)
	p.complete = !b.done.More
	switch {
	case p.walk.passed > before:
		p.stretch = p.usual
	case !p.complete:
		p.stretch *= 2 // a publisher's transaction is open for long: what it may add is looked for from the same place
	}
}

// cameBack notes a look of the way back.
func (p *pass) cameBack(b *batch, began time.Time) {
	back := p.back
	p.hide(b, back.passed, back.of)
	for env := range b.hidden {
		delete(back.of, env)
	}
	back.passed = max(back.passed, b.highest)
	now := time.Now()
	back.spent += now.Sub(began)
	if len(back.of) > 0 && back.passed < p.walk.passed {
		return
	}
	for env := range back.of {
		delete(p.hidden, env)
	}
	p.back, p.wentBack, p.spent = nil, now, back.spent
}

// assignAhead is Assign for a look ahead.
func (s *Store) assignAhead(ctx context.Context, look Look) (Assigned, error) {
	now := time.Now()
	p := s.currentPass()
	goesBack := p.goesBack(now, look) // asks the worker, which may be asking us
	if again := s.currentPass(); again != p {
		p, goesBack = again, false // something was let go just now
	}
	next := p.next(goesBack)
	b, err := s.assign(ctx, look, func(tx *sqlx.Tx, b *batch) error {
		b.hidden, b.held = make(map[environment]bool), make(map[environment]bool)
		return s.findAhead(ctx, tx, b, next)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !b.done.Busy && s.pass == p { // else something is to be found again
		if goesBack {
			p.cameBack(b, now)
		} else {
			p.walked(b)
		}
	}
	b.done.AtEnd = p.complete && s.pass == p
	b.done.More = b.done.More || p.back != nil || !p.complete
	s.findAgain(b)
	return b.done, err
}

// currentPass is the pass that is under way, or a new one.
func (s *Store) currentPass() *pass {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pass == nil {
		s.pass = &pass{
			hidden: make(map[environment]int64), held: make(map[environment]time.Time), stretch: s.stretch, usual: s.stretch,
		}
	}
	p := s.pass
	p.walk.passed = max(p.walk.passed, s.sweep.passed)
	if p.back != nil {
		p.back.passed = max(p.back.passed, s.sweep.passed)
	}
	return p
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

// findAhead walks over a stretch, and reads the events of environments of which
// the worker doesn't have enough. The events from which copies are made count
// wherever they are: what comes after one in its source must wait for it.
func (s *Store) findAhead(ctx context.Context, tx *sqlx.Tx, b *batch, next stretch) error {
	carried := b.look.Carried(next.after)
	without, err := rows(carried)
	if err != nil {
		return err
	}
	list, err := rows(next.list)
	if err != nil {
		return err
	}
	in := `NOT IN `
	if next.only {
		in = `IN `
	}
	var walked []struct {
		environmentRow
		// Row says what it is: an environment, an event that creates one, or,
		// last, how many events were walked over, and up to where.
		Row      string `db:"row_of"`
		Count    int    `db:"count"`
		Sequence int64  `db:"sequence"`
	}
	if err := tx.SelectContext(ctx, &walked, s.db.SQL(`
		WITH walked AS MATERIALIZED (SELECT sequence, service_id, environment_id, type FROM {outbox}
			WHERE `+unassigned+` ORDER BY sequence LIMIT ?)
		SELECT DISTINCT service_id, environment_id, 'environment' AS row_of, 0 AS count, 0 AS sequence FROM walked
			WHERE sequence NOT IN {ids} AND (service_id, environment_id) `+in+environmentList+`
		UNION ALL SELECT '', '', 'created', 0, sequence FROM walked WHERE type = '`+events.EnvironmentCreatedType+`'
		UNION ALL SELECT '', '', 'all', count(*), coalesce(max(sequence), 0) FROM walked`),
		next.after, next.to, next.to, next.most, without, list); err != nil {
		return err
	}
	wanted := make(map[environment]bool)
	var created []*assignment
	to := int64(0)
	for _, w := range walked {
		switch env := (environment{w.ServiceID, w.EnvironmentID}); {
		case w.Row == "all":
			to, b.done.More = w.Sequence, w.Count == next.most
		case w.Row == "created":
			if err := s.selectFresh(ctx, tx, b, w.Sequence-1, w.Sequence, 1, nil, nil); err != nil {
				return err
			}
			created = append(created, b.found...)
		case b.look.Enough(env.serviceID, env.environmentID):
			b.hidden[env] = true
		default:
			wanted[env] = true
		}
	}
	if next.only && !b.done.More {
		to = next.to // nothing is left up to there
	}
	b.found = nil
	if err := s.findForCopies(ctx, tx, b, created); err != nil {
		return err
	}
	for env := range b.copying {
		b.hidden[env] = true
		delete(wanted, env)
	}
	forCopies := b.found
	b.found, b.highest = nil, to
	if len(wanted) > 0 {
		if err := s.selectFresh(ctx, tx, b, next.after, to, b.look.Most, carried, environmentRows(maps.Keys(wanted))); err != nil {
			return err
		}
		if len(b.found) == b.look.Most {
			b.done.More = true
		} else {
			b.highest = to
		}
	}
	for _, a := range b.found {
		if a.created != nil { // it has just become visible: the next look finds it
			b.hidden[a.environment] = true
			b.hidden[a.source()] = true
		}
	}
	b.found = append(forCopies, b.found...)
	return nil
}
