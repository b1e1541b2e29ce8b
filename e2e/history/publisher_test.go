package history_test

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
)

// publisher is one connection of the CMS. Several of a service publish side by
// side, each holding the shelves that its transaction touches.
type publisher struct {
	author
	sent []*act
}

const insert = `INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
	VALUES ({uuid}, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING`

// run publishes until the service's events are used up. In some histories it
// stays not too far ahead of the workers, so that operators act while it goes on.
func (p *publisher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.unfinished.Load() > p.mostUnfinished {
			p.rest(ctx, tick)
			continue
		}
		n := 1 + p.r.IntN(5)
		if p.left.Add(int64(-n)) < 0 {
			return nil
		}
		if err := p.publish(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// publish makes one transaction of about n events.
func (p *publisher) publish(ctx context.Context, n int) error {
	if p.chance(0.06) {
		return p.publishEnvironments(ctx, n)
	}
	sh := pick(p.r, p.shelves)
	sh.Lock()
	defer sh.Unlock()
	if p.chance(0.03) {
		return p.send(ctx, p.story(sh.copyOf(), n), ending{rollBack: true})
	}
	how := ending{}
	if p.chance(0.02) {
		how.linger = p.aWhile()
	}
	return p.send(ctx, p.story(sh, n), how)
}

func (p *publisher) aWhile() time.Duration {
	return time.Duration(100+p.r.IntN(900)) * time.Millisecond
}

// story is n events of a shelf, in any environments or in the one given.
func (p *publisher) story(sh *shelf, n int, in ...*life) []*act {
	if len(in) == 0 {
		in = p.environments
	}
	var acts []*act
	for len(acts) < n {
		acts = append(acts, p.media(sh, pick(p.r, in))...)
	}
	return acts
}

// publishEnvironments makes and deletes environments, with events of media
// before, between and after.
func (p *publisher) publishEnvironments(ctx context.Context, n int) error {
	p.lock()
	defer p.unlock()
	if len(p.environments) > 1 && p.stage.DB.Dialect == database.PostgreSQL && p.chance(0.15) {
		return p.publishLate(ctx, n)
	}
	var acts []*act
	for range 1 + p.r.IntN(3) {
		if p.chance(0.5) {
			acts = append(acts, p.story(pick(p.r, p.shelves), 1+p.r.IntN(n))...)
		}
		if a := p.environmentAct(); a != nil {
			acts = append(acts, a)
		}
	}
	return p.send(ctx, acts, ending{})
}

// publishLate commits events of an environment after its deletion, whose
// sequence is higher. By then there may be another of that name.
func (p *publisher) publishLate(ctx context.Context, n int) error {
	e := p.environments[1+p.r.IntN(len(p.environments)-1)]
	acts := p.story(pick(p.r, p.shelves), n, e)
	how := ending{linger: p.aWhile(), meanwhile: []*act{p.deletion(e)}}
	if !p.closed.Load() && !e.paused.Load() && p.chance(0.5) {
		how.meanwhile = append(how.meanwhile, p.creation(e.id, pick(p.r, p.environments)))
	}
	return p.send(ctx, acts, how)
}

// ending says how a transaction ends.
type ending struct {
	rollBack bool
	// linger is how long it stays open, while others commit later sequences.
	linger time.Duration
	// meanwhile are such events, in a transaction of their own.
	meanwhile []*act
}

// send publishes the events in one transaction. Some are sent twice, and some
// again that were sent before.
func (p *publisher) send(ctx context.Context, acts []*act, how ending) error {
	if err := p.putFiles(acts); err != nil {
		return err
	}
	tx, err := p.stage.DB.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	query := p.stage.DB.SQL(insert)
	for _, a := range acts {
		row, err := a.row()
		if err != nil {
			return err
		}
		for again := true; again; again = p.chance(0.05) {
			if _, err := tx.ExecContext(ctx, query, row...); err != nil {
				return err
			}
		}
	}
	if len(p.sent) > 0 && p.chance(0.05) {
		row, err := pick(p.r, p.sent).row()
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, query, row...); err != nil {
			return err
		}
	}
	if how.rollBack {
		return nil
	}
	if len(how.meanwhile) > 0 {
		if err := p.send(ctx, how.meanwhile, ending{}); err != nil {
			return err
		}
	}
	// SQLite has one writer, whom nobody overtakes.
	if p.stage.DB.Dialect == database.PostgreSQL && how.linger > 0 {
		p.rest(ctx, how.linger)
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	p.sent = append(p.sent, acts...)
	p.remember(acts)
	return nil
}

func (p *publisher) putFiles(acts []*act) error {
	for _, a := range acts {
		if a.file != "" && !a.missing {
			if err := p.putFile(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *history) putFile(a *act) error {
	return os.WriteFile(filepath.Join(h.stage.Root, a.file), []byte(a.content), 0o600)
}
