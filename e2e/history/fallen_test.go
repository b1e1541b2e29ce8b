package history_test

import (
	"context"
	"fmt"
	"slices"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// fate is what an operator does about events that died.
type fate int

const (
	replay fate = iota
	discard
	// discardFirst discards the first, and replays what died of it.
	discardFirst
)

func (w *author) fate() fate { return pick(w.r, []fate{replay, replay, replay, discard, discardFirst}) }

// fallen are events of one media that die, until an operator has settled them.
type fallen struct {
	environment *life
	stand       *stand
	acts        []*act
	// pinned events died because names are pinned.
	pinned bool
	fate   fate
}

// awaited are the events that must have ended before it is certain what the
// operator's action does: the dead ones; later ones of the media; copies of the
// environment, which else might or might not see a replayed event; and the
// environment's deletion.
func (f *fallen) awaited() []*act {
	first := f.acts[0]
	list := slices.Clone(f.acts)
	for _, a := range f.stand.acts {
		if a.media == first.media && a.n > first.n {
			list = append(list, a)
		}
	}
	for _, child := range f.environment.children {
		if child.n > first.n {
			list = append(list, child)
		}
	}
	if f.environment.death != nil {
		list = append(list, f.environment.death)
	}
	return list
}

// settle does what the operator wants, and tells whether that could be done.
// The shelf is locked, so no copy of the environment can begin meanwhile.
func (o *operator) settle(ctx context.Context, sh *shelf, f *fallen) (bool, error) {
	if f.pinned && f.environment.pinned && f.environment.death == nil {
		return false, nil
	}
	states, ended, err := o.ended(ctx, f.awaited())
	if err != nil || !ended {
		return false, err
	}
	var dead []*act
	for _, a := range f.acts {
		if states[a.id] == outbox.Dead {
			dead = append(dead, a)
		}
	}
	for i, a := range dead {
		if f.fate == discard || f.fate == discardFirst && i == 0 {
			err = o.discard(ctx, a)
			if err == nil {
				f.stand.forgive(a)
			}
			continue
		}
		err = o.prepare(f, a)
	}
	if err != nil || f.fate == discard {
		return true, err
	}
	if f.fate == discardFirst && len(dead) > 0 {
		dead = dead[1:]
	}
	if err := o.replay(ctx, f, dead); err != nil {
		return true, err
	}
	if f.fate == replay {
		delete(f.stand.aside, f.acts[0].media)
	}
	return true, nil
}

// prepare puts a missing source where it should be.
func (o *operator) prepare(f *fallen, a *act) error {
	f.stand.forgive(a)
	if !a.missing {
		return nil
	}
	a.missing = false
	return o.putFile(a)
}

// replay retries dead events together. They run in publish order.
func (o *operator) replay(ctx context.Context, f *fallen, dead []*act) error {
	if len(dead) == 0 {
		return nil
	}
	counts, err := o.outbox.Retry(ctx, outbox.Filter{EventIDs: ids(dead)}, outbox.Action{Actor: "history", Reason: "replay"})
	if err != nil {
		return err
	}
	if counts.Changed != int64(len(dead)) {
		o.fault("a replay of %d dead events of %s %s in %q changed %d", len(dead), o.Service, dead[0].media,
			f.environment.id, counts.Changed)
	}
	for _, a := range dead {
		o.note("%s: replayed %s", o.Service, a)
		a.ends = []string{superseded}
		if f.environment.death == nil {
			a.ends = []string{f.stand.apply(a)}
			f.stand.renaming = append(f.stand.renaming, a)
		}
	}
	return nil
}

// discard discards a dead event.
func (o *operator) discard(ctx context.Context, a *act) error {
	counts, err := o.outbox.Discard(ctx, outbox.Filter{EventIDs: []string{a.id}}, outbox.Action{Actor: "history", Reason: "discard"})
	if err != nil {
		return err
	}
	if counts.Changed != 1 {
		o.fault("a dead event could not be discarded: %s %s", o.Service, a)
	}
	o.note("%s: discarded %s", o.Service, a)
	a.ends = []string{discarded}
	return nil
}

// ended tells the events' states, and whether nothing more will happen to any
// of them by itself.
func (h *history) ended(ctx context.Context, acts []*act) (map[string]string, bool, error) {
	states := make(map[string]string, len(acts))
	for chunk := range slices.Chunk(acts, 500) {
		listed, err := h.outbox.List(ctx, outbox.Filter{EventIDs: ids(chunk)}, 0)
		if err != nil {
			return nil, false, err
		}
		for _, e := range listed {
			states[e.EventID] = e.State
		}
	}
	for _, a := range acts {
		switch states[a.id] {
		case outbox.Completed, outbox.Dead, outbox.Discarded:
		case "":
			return nil, false, fmt.Errorf("event %s was committed and is not there: %s %s", a.id, a.service, a)
		default:
			return states, false, nil
		}
	}
	return states, true, nil
}

func ids(acts []*act) []string {
	list := make([]string, len(acts))
	for i, a := range acts {
		list[i] = a.id
	}
	return list
}
