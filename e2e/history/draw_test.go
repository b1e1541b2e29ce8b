package history_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/ownbucket/ownbucket/events"
)

// author makes up events by what the model holds, and applies them to it.
type author struct {
	*service
	r *rand.Rand
}

// endings of file names have what is hard to encode.
var endings = []string{".png", " 写真.jpg", "+a.pdf", "%41.svg", "が.txt", "~*.txt", "😀.gif"}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (w *author) chance(p float64) bool { return w.r.Float64() < p }

func (w *author) act(kind, environment string) *act {
	return &act{n: w.count.Add(1), id: w.uuid(w.r), kind: kind, service: w.Service, environment: environment}
}

// media makes events of one media, most often one event, and applies them. Any
// event will do whose end is certain.
func (w *author) media(sh *shelf, e *life) []*act {
	s := sh.stands[e.id]
	live := s.live()
	x := w.r.Float64()
	switch {
	case x < 0.02:
		return w.doomed(sh, e)
	case x < 0.04:
		return []*act{w.odd(sh, e, live)}
	case x < 0.36 || len(live) == 0:
		return []*act{w.write(s, w.upload(sh, e, w.mediaToMake(sh, s), w.name(sh, s)))}
	}
	media := pick(w.r, live)
	old := s.objects[media]
	renames := e.mayRename() || e.pinned && !e.still.Load() && w.chance(0.2)
	switch {
	case x < 0.50 || x < 0.85 && !renames:
		return []*act{w.write(s, w.upload(sh, e, media, old.name))}
	case x < 0.62:
		a := w.upload(sh, e, media, w.name(sh, s))
		// Where names are pinned, an upload that replaces a copy which isn't made yet
		// has only its own word for the name before.
		if s.coveted[old.name] || e.pinned && old.copied || w.chance(0.7) {
			a.from = old.name
		}
		return []*act{w.rename(sh, e, a)}
	case x < 0.85:
		return []*act{w.rename(sh, e, w.renamed(e, media, old.name, w.name(sh, s)))}
	}
	a := w.act(events.MediaDeletedType, e.id)
	a.media, a.name, a.version = media, old.name, w.version(w.r)
	return []*act{w.write(s, a)}
}

// mayRename tells whether names may change freely.
func (e *life) mayRename() bool { return !e.pinned && !e.still.Load() }

// write applies the event.
func (w *author) write(s *stand, a *act) *act {
	copied := s.objects[a.media].copied
	s.acts = append(s.acts, a)
	a.ends = []string{s.apply(a)}
	if copied && a.kind == events.MediaDeletedType {
		a.mayEnd(skipped) // it doesn't wait for a media that is yet to be copied
	}
	return a
}

// rename applies an event that may change a name. Where names are pinned it
// dies, to be tried again when they no longer are.
func (w *author) rename(sh *shelf, e *life, a *act) *act {
	s := sh.stands[e.id]
	if e.pinned {
		a.name = w.fresh(sh)
	}
	w.write(s, a)
	s.renaming = append(s.renaming, a)
	if e.pinned {
		sh.fallen = append(sh.fallen, &fallen{environment: e, stand: s, acts: []*act{a}, pinned: true, fate: w.fate()})
	}
	return a
}

func (w *author) upload(sh *shelf, e *life, media, name string) *act {
	a := w.act(events.MediaUploadedType, e.id)
	a.media, a.name, a.version, a.vague = media, name, w.version(w.r), w.chance(0.25)
	a.content = strings.Repeat("bytes of ", pick(w.r, []int{0, 1, 10, 1000})) + fmt.Sprint(a.n)
	a.file = fmt.Sprintf("upload-%d", a.n)
	return a
}

func (w *author) renamed(e *life, media, from, to string) *act {
	a := w.act(events.MediaRenamedType, e.id)
	a.media, a.from, a.name, a.version = media, from, to, w.version(w.r)
	return a
}

// doomed uploads have no bytes until somebody puts them there. Nothing else is
// published of a media that is new, but for a rename that dies of it.
func (w *author) doomed(sh *shelf, e *life) []*act {
	s := sh.stands[e.id]
	a := w.upload(sh, e, w.freshMedia(sh), w.fresh(sh))
	if live := s.live(); len(live) > 0 && w.chance(0.5) {
		a.media = pick(w.r, live)
		if old := s.objects[a.media]; !e.mayRename() || w.chance(0.5) {
			a.name = old.name
		} else {
			a.from = old.name
			s.renaming = append(s.renaming, a)
		}
	}
	a.missing = true
	acts := []*act{w.write(s, a)}
	if !s.objects[a.media].live() {
		s.aside[a.media] = true
		if e.mayRename() && w.chance(0.5) {
			b := w.write(s, w.renamed(e, a.media, a.name, w.fresh(sh)))
			s.renaming = append(s.renaming, b)
			acts = append(acts, b)
		}
	}
	sh.fallen = append(sh.fallen, &fallen{environment: e, stand: s, acts: slices.Clone(acts), fate: w.fate()})
	return acts
}

// odd events are published by a CMS that has lost its count.
func (w *author) odd(sh *shelf, e *life, live []string) *act {
	s := sh.stands[e.id]
	unknown := fmt.Sprintf("unknown-%d-%d", sh.number, w.count.Load())
	switch w.r.IntN(4) {
	case 0:
		return w.write(s, w.renamed(e, unknown, w.fresh(sh), w.fresh(sh)))
	case 1:
		a := w.act(events.MediaDeletedType, e.id)
		a.media, a.name, a.version = unknown, w.fresh(sh), w.version(w.r)
		return w.write(s, a)
	case 2:
		if len(s.strangers) == 0 {
			break
		}
		for name := range s.strangers {
			return w.write(s, w.upload(sh, e, unknown, name))
		}
	}
	if len(live) == 0 {
		return w.write(s, w.upload(sh, e, w.freshMedia(sh), w.fresh(sh)))
	}
	name := s.objects[pick(w.r, live)].name
	s.coveted[name] = true
	return w.write(s, w.upload(sh, e, unknown, name))
}

// name is one that was given up, where there is one, every other time.
func (w *author) name(sh *shelf, s *stand) string {
	if len(s.free) > 0 && w.chance(0.5) {
		n := w.r.IntN(len(s.free))
		name := s.free[n]
		s.free = slices.Delete(s.free, n, n+1)
		if s.holder(name) == "" {
			return name
		}
	}
	return w.fresh(sh)
}

// fresh is a name that was never used.
func (w *author) fresh(sh *shelf) string {
	sh.made++
	return fmt.Sprintf("%d-%d%s", sh.number, sh.made, pick(w.r, endings))
}

func (w *author) freshMedia(sh *shelf) string {
	sh.made++
	return fmt.Sprintf("m%d-%d", sh.number, sh.made)
}

// mediaToMake is a new one or, now and then, one that was deleted.
func (w *author) mediaToMake(sh *shelf, s *stand) string {
	if w.chance(0.1) {
		var buried []string
		for media, o := range s.objects {
			if !o.live() && !s.aside[media] && !strings.HasPrefix(media, "unknown") {
				buried = append(buried, media)
			}
		}
		if len(buried) > 0 {
			slices.Sort(buried)
			return pick(w.r, buried)
		}
	}
	return w.freshMedia(sh)
}

// environmentAct makes or deletes an environment. All shelves are locked.
func (w *author) environmentAct() *act {
	const most = 6
	n := len(w.environments)
	remove := n > 1 && (w.closed.Load() || n == most || w.chance(0.4))
	if !remove && w.closed.Load() {
		return nil
	}
	// Half of the time it is the newest: chains get long, and lives short.
	chosen := w.environments[n-1]
	if remove {
		if w.chance(0.5) {
			chosen = w.environments[1+w.r.IntN(n-1)]
		}
		return w.deletion(chosen)
	}
	if w.chance(0.5) {
		chosen = pick(w.r, w.environments)
	}
	return w.creation(w.newEnvironment(), chosen)
}

func (w *author) creation(id string, source *life) *act {
	a := w.act(events.EnvironmentCreatedType, id)
	a.source = source.id
	w.create(a)
	return a
}

func (w *author) deletion(e *life) *act {
	a := w.act(events.EnvironmentDeletedType, e.id)
	w.remove(a)
	return a
}

// newEnvironment is an ID that was never used or, now and then, one whose
// environment is gone.
func (w *author) newEnvironment() string {
	if len(w.gone) > 0 && w.chance(0.3) {
		e := pick(w.r, w.gone)
		paused := slices.ContainsFunc(w.gone, func(g *life) bool { return g.id == e.id && g.paused.Load() })
		if w.find(e.id) == nil && !paused {
			return e.id
		}
	}
	w.made++
	return fmt.Sprintf("e%d", w.made)
}
