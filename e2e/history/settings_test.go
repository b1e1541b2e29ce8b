package history_test

import (
	"context"
	"fmt"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/integration"
)

// change changes settings that may change at any time, and alter no file.
func (o *operator) change(ctx context.Context) error {
	sh := pick(o.r, o.shelves)
	sh.Lock()
	defer sh.Unlock()
	e := pick(o.r, o.environments)
	if e.birth != nil {
		// Without a creation that has ended, there are no settings to change.
		if _, ended, err := o.ended(ctx, []*act{e.birth}); err != nil || !ended {
			return err
		}
	}
	memo := fmt.Sprintf("memo %d", o.count.Load())
	change := integration.Change{Memo: &memo}
	switch o.r.IntN(3) {
	case 0:
		domain := fmt.Sprintf("https://media-%d.example.com", o.count.Load())
		change.CustomDomain = &domain
	case 1:
		role, err := o.newRole()
		if err != nil {
			return err
		}
		change.RoleARN = &role
	}
	o.note("%s: settings of %q change", o.Service, e.id)
	return o.set(ctx, e.id, change)
}

// newRole is as good as the first one, which stays: calls under way have it.
func (o *operator) newRole() (string, error) {
	var role awslocal.Role
	if err := o.stage.AWS.ChangeRole(o.roles[0], func(r *awslocal.Role) { role = *r }); err != nil {
		return "", err
	}
	role.ARN += fmt.Sprintf("-%d", len(o.roles))
	o.roles = append(o.roles, role.ARN)
	return role.ARN, o.stage.AWS.SetRole(role)
}

func (o *operator) set(ctx context.Context, environment string, change integration.Change) error {
	change.ServiceID, change.EnvironmentID = o.Service, environment
	change.SkipTest, change.Reason, change.Actor = true, "history", "history"
	if _, err := o.stage.Settings.Set(ctx, change); err != nil {
		return fmt.Errorf("change the settings of %q: %w", environment, err)
	}
	return nil
}

// pin pins an environment's file names, or ends that. Before that nothing that
// may change a name is published into it until what was has ended, and so have
// creations that take its settings.
func (o *operator) pin(ctx context.Context, published <-chan struct{}) error {
	e := o.holdStill()
	defer e.still.Store(false)
	_, err := o.until(ctx, published, func() (bool, error) { return o.turnPin(ctx, e) })
	return err
}

func (o *operator) holdStill() *life {
	sh := o.shelves[0]
	sh.Lock()
	defer sh.Unlock()
	e := pick(o.r, o.environments)
	e.still.Store(true)
	return e
}

func (o *operator) turnPin(ctx context.Context, e *life) (bool, error) {
	o.lock()
	defer o.unlock()
	if e.death != nil {
		return true, nil
	}
	awaited := append([]*act{}, e.children...)
	if e.birth != nil {
		awaited = append(awaited, e.birth)
	}
	for _, sh := range o.shelves {
		awaited = append(awaited, sh.stands[e.id].renaming...)
	}
	if _, ended, err := o.ended(ctx, awaited); err != nil || !ended {
		return false, err
	}
	pinned := !e.pinned
	if err := o.set(ctx, e.id, integration.Change{PinFileNames: &pinned}); err != nil {
		return false, err
	}
	o.note("%s: file names in %q are pinned: %t", o.Service, e.id, pinned)
	e.pinned = pinned
	for _, sh := range o.shelves {
		sh.stands[e.id].pinned, sh.stands[e.id].renaming = pinned, nil
	}
	return true, nil
}
