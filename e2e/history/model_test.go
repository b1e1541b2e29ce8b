package history_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/ownbucket/ownbucket/events"
)

// place is an environment of a service; production's name is empty.
type place struct{ service, environment string }

func (p place) serviceID() string {
	if p.environment == "" {
		return p.service
	}
	return p.service + "-" + p.environment
}

// act is an event that the CMS publishes.
type act struct {
	n  int // its place in the order of the INSERTs, from 1
	id string
	place
	kind    string
	media   string
	name    string // after an upload or rename; of a deleted media
	from    string // before a rename or re-upload
	source  place  // what an environment is made from
	version int64
	content string
	// vague uploads tell neither the size nor the checksum of their bytes.
	vague bool
	// freed is the name that the media gave up, once that is known.
	freed string
}

func (a *act) contentType() string { return fmt.Sprintf("text/x-%d", a.n) }

// mentions are the file names in the payload.
func (a *act) mentions() []string {
	return slices.DeleteFunc([]string{a.name, a.from}, func(name string) bool { return name == "" })
}

// sharesWith tells whether two events of one environment run in publish order.
func (a *act) sharesWith(b *act) bool {
	return a.media == b.media || slices.ContainsFunc(a.mentions(), b.mentionsName)
}

func (a *act) mentionsName(name string) bool { return slices.Contains(a.mentions(), name) }

// ofPlace tells an event that concerns a whole environment.
func (a *act) ofPlace() bool { return a.media == "" }

// ordered tells whether it matters which of two events comes first: they share
// something, or one concerns the environment of the other.
func (a *act) ordered(b *act) bool {
	if a.place == b.place {
		return a.ofPlace() || b.ofPlace() || a.sharesWith(b)
	}
	reads := func(a, b *act) bool { return a.kind == events.EnvironmentCreatedType && a.source == b.place }
	return reads(a, b) || reads(b, a)
}

func (a *act) String() string {
	text := fmt.Sprintf("#%d %s/%s: %s", a.n, a.service, a.environment, a.kind)
	switch a.kind {
	case events.EnvironmentCreatedType:
		return text + fmt.Sprintf(" from %q", a.source.environment)
	case events.EnvironmentDeletedType:
		return text
	}
	return text + fmt.Sprintf(" %s %q (before: %q) version %d", a.media, a.name, a.from, a.version)
}

// row is what the ledger should hold of a media; without a name it is a
// tombstone.
type row struct {
	name, content, contentType string
	version                    int64
	n                          int
}

func (r row) live() bool { return r.name != "" }

// site is what should become of an environment.
type site struct {
	exists  bool
	deleted int // the last deletion
	rows    map[string]row
	// dead has the first dead event of each media.
	dead map[string]int
	// strangers are the names at which somebody else's objects stand.
	strangers map[string]bool
}

// holder is the media that has the name.
func (s *site) holder(name string) (media string, held bool) {
	for media, r := range s.rows {
		if r.live() && r.name == name {
			return media, true
		}
	}
	return "", false
}

func (s *site) taken(a *act) bool {
	media, held := s.holder(a.name)
	return held && media != a.media || s.strangers[a.name]
}

// model is what events mean, done one after the other without any failure.
type model map[place]*site

func (m model) clone() model {
	c := make(model, len(m))
	for p, s := range m {
		c[p] = &site{s.exists, s.deleted, maps.Clone(s.rows), maps.Clone(s.dead), maps.Clone(s.strangers)}
	}
	return c
}

// places lists what exists.
func (m model) places() []place {
	var list []place
	for p, s := range m {
		if s.exists {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.environment, b.environment))
	})
	return list
}

const (
	done       = "completed done"
	skipped    = "completed skipped"
	superseded = "completed superseded"
	keyTaken   = "dead key_taken"

	predecessorDead = "dead predecessor_dead"
)

// apply does the event and returns how it ends.
func (m model) apply(a *act) string {
	s := m[a.place]
	switch {
	case a.kind == events.EnvironmentCreatedType:
		return m.create(a, s)
	case a.kind == events.EnvironmentDeletedType:
		*s = site{deleted: a.n, rows: map[string]row{}, dead: s.dead, strangers: map[string]bool{}}
		return done
	case a.n < s.deleted:
		return superseded
	}
	old, known := s.rows[a.media]
	if known && (old.version > a.version || old.version == a.version && old.n > a.n) {
		return superseded
	}
	die := func(state string) string {
		if first, ok := s.dead[a.media]; !ok || a.n < first {
			s.dead[a.media] = a.n
		}
		return state
	}
	switch a.kind {
	case events.MediaUploadedType:
		if s.taken(a) {
			return die(keyTaken)
		}
		s.rows[a.media] = row{a.name, a.content, a.contentType(), a.version, a.n}
	case events.MediaRenamedType:
		switch first, dead := s.dead[a.media]; {
		case !old.live() && dead && first < a.n:
			return die(predecessorDead)
		case !old.live():
			return skipped
		case s.taken(a):
			return die(keyTaken)
		}
		s.rows[a.media] = row{a.name, old.content, old.contentType, a.version, a.n}
	case events.MediaDeletedType:
		s.rows[a.media] = row{version: a.version, n: a.n}
		if !old.live() {
			return skipped
		}
	}
	return done
}

// create copies the live media. What a stranger's object keeps out stays out.
func (m model) create(a *act, s *site) string {
	s.exists = true
	for media, r := range m[a.source].rows {
		if r.live() && !s.strangers[r.name] {
			r.n = a.n
			s.rows[media] = r
		}
	}
	return done
}
