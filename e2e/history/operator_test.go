package history_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// operator looks after one service: it settles events that died, pauses and
// resumes environments, and changes settings. It also is the customer who takes
// back the account's rights for a while.
//
// It does each of these only where the outcome is certain, under the lock of a
// shelf at least, so that no environment comes or goes meanwhile.
type operator struct {
	author
	denials int
}

// mostDenials bounds how often an account turns us away: an event that is
// denied again after a probe has passed dies in the end.
const mostDenials = 2

// tick is how often an operator looks.
const tick = 40 * time.Millisecond

// run goes on until all is published and what died is settled.
func (o *operator) run(ctx context.Context, published <-chan struct{}) error {
	for ctx.Err() == nil {
		o.rest(ctx, tick)
		left, err := o.settleAll(ctx)
		if err != nil {
			return err
		}
		select {
		case <-published:
			if left == 0 {
				return nil
			}
			continue
		default:
		}
		switch o.r.IntN(24) {
		case 0, 1:
			err = o.pause(ctx)
		case 2:
			err = o.deny(ctx, published)
		case 3, 7:
			err = o.pin(ctx, published)
		case 4, 5, 6:
			err = o.change(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settleAll settles what it can, and returns how much of the rest may become
// certain by itself.
func (o *operator) settleAll(ctx context.Context) (left int, err error) {
	for _, sh := range o.shelves {
		n, err := o.settleShelf(ctx, sh)
		if err != nil {
			return 0, err
		}
		left += n
	}
	return left, nil
}

func (o *operator) settleShelf(ctx context.Context, sh *shelf) (left int, err error) {
	sh.Lock()
	defer sh.Unlock()
	var kept []*fallen
	for _, f := range sh.fallen {
		settled, err := o.settle(ctx, sh, f)
		if err != nil {
			return 0, err
		}
		if settled {
			continue
		}
		kept = append(kept, f)
		if !f.pinned || !f.environment.pinned || f.environment.death != nil {
			left++
		}
	}
	sh.fallen = kept
	return left, nil
}

// ready tells whether the copies into an environment have ended: while one is
// owed, an event of the source would give it up where the environment is held.
func (o *operator) ready(ctx context.Context, e *life) (bool, error) {
	if e.birth == nil {
		return true, nil
	}
	if _, ended, err := o.ended(ctx, []*act{e.birth}); err != nil || !ended {
		return false, err
	}
	shown, err := o.history.environments.Show(ctx, o.Service, e.id)
	if errors.Is(err, environment.ErrNotFound) {
		return false, nil
	}
	return shown.State == "complete", err
}

// pause holds an environment for a while. Some events are published into it
// meanwhile and discarded before they ran.
func (o *operator) pause(ctx context.Context) error {
	e, err := o.beginPause(ctx)
	if e == nil || err != nil {
		return err
	}
	o.rest(ctx, time.Duration(100+o.r.IntN(1500))*time.Millisecond)
	// A deletion that had begun before the pause may have taken the settings.
	err = o.stage.Settings.Resume(ctx, o.Service, e.id, "history", "resume")
	if errors.Is(err, integration.ErrNotFound) {
		err = nil
	}
	e.paused.Store(false)
	o.note("%s: resumed %q", o.Service, e.id)
	return err
}

func (o *operator) beginPause(ctx context.Context) (*life, error) {
	sh := pick(o.r, o.shelves)
	sh.Lock()
	defer sh.Unlock()
	e := pick(o.r, o.environments)
	if ready, err := o.ready(ctx, e); err != nil || !ready {
		return nil, err
	}
	e.paused.Store(true)
	if err := o.stage.Settings.Pause(ctx, o.Service, e.id, "history", "pause"); err != nil {
		return nil, fmt.Errorf("pause %q: %w", e.id, err)
	}
	o.note("%s: paused %q", o.Service, e.id)
	for range o.r.IntN(3) {
		if err := o.publishAndDiscard(ctx, sh, e); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// publishAndDiscard publishes an event into a paused environment and discards
// it. Should it have run nevertheless, the answer tells.
func (o *operator) publishAndDiscard(ctx context.Context, sh *shelf, e *life) error {
	s := sh.stands[e.id]
	live := s.live()
	a := o.upload(sh, e, o.freshMedia(sh), o.fresh(sh))
	if len(live) > 0 && o.chance(0.7) {
		a.media = pick(o.r, live)
		old := s.objects[a.media]
		switch {
		case !e.mayRename() || o.chance(0.3):
			a.name = old.name
		case o.chance(0.5):
			a = o.renamed(e, a.media, old.name, a.name)
		default:
			a.from = old.name
		}
	}
	p := publisher{author: o.author}
	if err := p.send(ctx, []*act{a}, ending{}); err != nil {
		return err
	}
	counts, err := o.outbox.Discard(ctx, outbox.Filter{EventIDs: []string{a.id}}, outbox.Action{Actor: "history", Reason: "discard"})
	if err != nil {
		return err
	}
	if counts.Changed == 1 {
		s.acts = append(s.acts, a)
		a.ends = []string{discarded}
		o.note("%s: discarded %s", o.Service, a)
		return nil
	}
	o.write(s, a)
	s.renaming = append(s.renaming, a)
	return nil
}

// deny lets the customer's account turn us away for a while. Before that no
// environment is made until all copies have ended.
func (o *operator) deny(ctx context.Context, published <-chan struct{}) error {
	if o.denials == mostDenials {
		return nil
	}
	o.closed.Store(true)
	defer o.closed.Store(false)
	looks := 0
	begun, err := o.until(ctx, published, func() (bool, error) {
		if looks++; looks > 50 {
			return false, errTooLong
		}
		return o.beginDenial(ctx)
	})
	if errors.Is(err, errTooLong) {
		return nil
	}
	if !begun || err != nil {
		return err
	}
	o.rest(ctx, time.Duration(100+o.r.IntN(1500))*time.Millisecond)
	if err := o.endDenial(); err != nil {
		return err
	}
	_, err = o.until(ctx, nil, func() (bool, error) { return o.unblocked(ctx) })
	o.note("%s: no environment is blocked any more", o.Service)
	return err
}

// errTooLong says that environments would be missed for too long.
var errTooLong = errors.New("copies take too long")

func (o *operator) beginDenial(ctx context.Context) (bool, error) {
	o.lock()
	defer o.unlock()
	for _, e := range o.environments {
		if ready, err := o.ready(ctx, e); err != nil || !ready {
			return false, err
		}
		if _, ended, err := o.ended(ctx, e.children); err != nil || !ended {
			return false, err
		}
	}
	var deaths []*act
	for _, e := range o.gone {
		deaths = append(deaths, e.death)
	}
	if _, ended, err := o.ended(ctx, deaths); err != nil || !ended {
		return false, err
	}
	for _, role := range o.roles {
		o.denied.Store(role, true)
		if err := o.stage.AWS.ChangeRole(role, func(r *awslocal.Role) { r.Policy = "" }); err != nil {
			return false, err
		}
	}
	o.denials++
	o.note("%s: the account denies all", o.Service)
	return true, nil
}

// endDenial gives the rights back.
func (o *operator) endDenial() error {
	o.lock()
	defer o.unlock()
	policy := awslocal.CustomerPolicy(o.Bucket, o.Prefix)
	for _, role := range o.roles {
		if err := o.stage.AWS.ChangeRole(role, func(r *awslocal.Role) { r.Policy = policy }); err != nil {
			return err
		}
	}
	o.note("%s: the account grants all again", o.Service)
	return nil
}

// unblocked tells whether no environment of the service is blocked. Now and then
// it changes the settings of those that are, which has them probed at once: the
// probe of a worker that was killed is else taken to go on for minutes.
func (o *operator) unblocked(ctx context.Context) (bool, error) {
	list, err := o.stage.Settings.List(ctx, 0)
	if err != nil {
		return false, err
	}
	free, again := true, o.chance(0.04)
	for _, i := range list {
		if i.ServiceID != o.Service || i.State != integration.Blocked {
			continue
		}
		free = false
		if !again {
			continue
		}
		// A deletion may have taken the settings since: they then lack the bucket.
		err := o.set(ctx, i.EnvironmentID, integration.Change{Memo: new("granted again")})
		if lacks := new(integration.FieldError); err != nil && !errors.As(err, &lacks) {
			return false, err
		}
	}
	return free, nil
}

// until tries again until the condition holds. It gives up when all is
// published, where that matters.
func (o *operator) until(ctx context.Context, published <-chan struct{}, holds func() (bool, error)) (bool, error) {
	for ctx.Err() == nil {
		if ok, err := holds(); ok || err != nil {
			return ok, err
		}
		select {
		case <-published:
			return false, nil
		default:
			o.rest(ctx, tick)
		}
	}
	return false, ctx.Err()
}
