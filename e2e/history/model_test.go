package history_test

import (
	"maps"
	"slices"

	"github.com/ownbucket/ownbucket/events"
)

// object is what an environment holds of a media. Without a name it is a
// tombstone.
type object struct {
	name, content, contentType string
	version                    events.Version
	// n is the event that it became so by.
	n int64
	// copied tells that no event of the environment has touched it.
	copied bool
}

func (o object) live() bool { return o.name != "" }

// stand is what a shelf holds in one environment: the sequential model. Its
// events are applied in publish order, as if each had ended before the next was
// published.
type stand struct {
	objects map[string]object // by media
	// dead has the first dead event of each media.
	dead map[string]int64
	// strangers are names at which somebody else's objects stand.
	strangers map[string]bool
	pinned    bool

	// acts are the environment's own events, and renaming those of them that
	// may change a name.
	acts, renaming []*act
	// free are names that were given up.
	free []string
	// coveted are names whose holder must not give them up without a word: an
	// event dies since the name is taken, whenever it runs.
	coveted map[string]bool
	// aside are media of which nothing more is published for now.
	aside map[string]bool
}

func newStand() *stand {
	return &stand{objects: map[string]object{}, dead: map[string]int64{}, strangers: map[string]bool{},
		coveted: map[string]bool{}, aside: map[string]bool{}}
}

// copied is what a new environment holds.
func (s *stand) copied(creation *act) *stand {
	c := newStand()
	c.pinned, c.free = s.pinned, slices.Clone(s.free)
	for media, o := range s.objects {
		if o.live() {
			o.n, o.copied = creation.n, true
			c.objects[media] = o
		}
	}
	return c
}

// clone is for what is made up and never committed.
func (s *stand) clone() *stand {
	c := *s
	c.objects, c.dead, c.coveted, c.aside = maps.Clone(s.objects), maps.Clone(s.dead), maps.Clone(s.coveted), maps.Clone(s.aside)
	c.acts, c.renaming, c.free = nil, nil, slices.Clone(s.free)
	return &c
}

// live lists the media that further events may be published of.
func (s *stand) live() []string {
	var list []string
	for media, o := range s.objects {
		if o.live() && !s.aside[media] {
			list = append(list, media)
		}
	}
	slices.Sort(list)
	return list
}

// holder is the media that has the name.
func (s *stand) holder(name string) string {
	for media, o := range s.objects {
		if o.live() && o.name == name {
			return media
		}
	}
	return ""
}

func (s *stand) taken(a *act) bool {
	holder := s.holder(a.name)
	return holder != "" && holder != a.media || s.strangers[a.name]
}

// apply does the event and returns how it ends. A replayed event is applied
// when it is replayed.
func (s *stand) apply(a *act) string {
	old := s.objects[a.media]
	if old.n > a.n {
		return superseded
	}
	end := s.refuse(a, old)
	if end == "" {
		s.become(a, old)
		return done
	}
	if end == skipped && a.kind == events.MediaDeletedType {
		s.become(a, old)
	}
	if first, dies := s.dead[a.media]; end != skipped && (!dies || a.n < first) {
		s.dead[a.media] = a.n
	}
	return end
}

// refuse tells why the event does nothing; it is empty where it does.
func (s *stand) refuse(a *act, old object) string {
	before := old.name
	if !old.live() && a.kind == events.MediaUploadedType {
		before = a.from
	}
	first, dead := s.dead[a.media]
	switch {
	case a.kind == events.MediaDeletedType && !old.live():
		return skipped
	case a.kind == events.MediaDeletedType:
		return ""
	case a.kind == events.MediaRenamedType && !old.live() && dead && first < a.n:
		return predecessorDead
	case a.kind == events.MediaRenamedType && !old.live():
		return skipped
	case s.pinned && before != "" && before != a.name:
		return namePinned
	case s.taken(a):
		return keyTaken
	case a.missing:
		return sourceGone
	}
	return ""
}

func (s *stand) become(a *act, old object) {
	if old.live() && old.name != a.name || a.kind == events.MediaDeletedType && old.live() {
		s.free = append(s.free, old.name)
	}
	next := object{name: a.name, content: old.content, contentType: old.contentType, version: a.version, n: a.n}
	switch a.kind {
	case events.MediaUploadedType:
		next.content, next.contentType = a.content, a.contentType()
	case events.MediaDeletedType:
		next = object{version: a.version, n: a.n}
	}
	s.objects[a.media] = next
}

// forgive forgets that an event is dead.
func (s *stand) forgive(a *act) {
	if s.dead[a.media] == a.n {
		delete(s.dead, a.media)
	}
}
