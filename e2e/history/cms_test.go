package history_test

import (
	"fmt"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
)

// cms makes up a history that a CMS could have, and what must come of it. What
// the order of events leaves open isn't made up: before a transaction commits
// whose events must not run beside others, the history waits until all is
// quiet.
type cms struct {
	t *rapid.T
	// model is as if all committed events had run.
	model model
	// recent were committed since all was quiet.
	recent []*act
	all    []*act // that were committed
	open   []*transaction
	// ends has the ways in which each committed event may end.
	ends  map[*act][]string
	steps []step

	number   int // in this run
	mostOpen int // transactions at once
	version  int64
	made     int // events
	begun    int // transactions
	lingered int
}

type transaction struct {
	number int
	acts   []*act
}

var (
	medias       = []string{"m1", "m2", "m3", "m4", "m5"}
	names        = []string{"a.txt", "b+ c.txt", "写真.txt", "d%2F.txt", "が.txt", "f~*.txt"}
	environments = []string{"dev", "stg", "qa"}
)

// newCMS has services with a production each. Strangers' objects stand at some
// of the keys.
func newCMS(t *rapid.T, mostOpen int) *cms {
	c := &cms{t: t, model: model{}, ends: map[*act][]string{}, mostOpen: mostOpen, version: 1_767_323_045_000_000}
	for n := range rapid.IntRange(1, 4).Draw(t, "services") {
		for _, environment := range append([]string{""}, environments...) {
			s := &site{exists: environment == "", rows: map[string]row{}, dead: map[string]int{}, strangers: map[string]bool{}}
			if c.oneIn(4, "stranger") {
				s.strangers[rapid.SampledFrom(names).Draw(t, "stranger's name")] = true
			}
			c.model[place{fmt.Sprintf("SERVICE#%d", n), environment}] = s
		}
	}
	return c
}

func (c *cms) oneIn(n int, what string) bool { return rapid.IntRange(1, n).Draw(c.t, what) == n }

// publish adds some events to a transaction.
func (c *cms) publish(t *rapid.T) {
	c.t = t
	tx := c.transaction()
	c.fill(tx, nil)
	if len(tx.acts) > 0 && rapid.Bool().Draw(t, "at once") {
		c.end(tx)
	}
}

// fill adds some events, of the same media as another.
func (c *cms) fill(tx *transaction, like *act) {
	for range rapid.IntRange(1, 5).Draw(c.t, "events") {
		seen := c.view(tx)
		a, ok := c.draw(seen, like)
		if !ok || c.locked(tx, a) || c.unordered(seen, a, tx.acts) {
			continue
		}
		c.made++
		a.n, a.id = c.made, fmt.Sprintf("00000000-0000-7000-8000-%012d", c.made)
		tx.acts = append(tx.acts, a)
		c.add(step{what: publishing, tx: tx.number, act: a})
	}
}

// linger keeps a transaction open until the workers have long seen later
// events. As soon as it commits, others go on with the same media.
func (c *cms) linger(t *rapid.T) {
	c.t = t
	if len(c.open)+2 > c.mostOpen || c.lingered == mostLingering {
		t.Skip("there are transactions enough")
	}
	c.lingered++
	long, quick := c.begin(), c.begin()
	c.fill(long, nil)
	c.fill(quick, nil)
	c.end(quick)
	if len(long.acts) > 0 {
		c.add(step{what: lingering, tx: long.number})
	}
	c.end(long)
	next := c.begin()
	if len(long.acts) > 0 {
		c.fill(next, long.acts[0])
	}
	c.end(next)
}

// mostLingering bounds how often, as it takes a while.
const mostLingering = 2

// publishAgain sends an event another time, as a CMS does that doesn't know
// whether it was committed.
func (c *cms) publishAgain(t *rapid.T) {
	c.t = t
	tx := c.transaction()
	known := slices.Concat(c.all, tx.acts)
	if len(known) == 0 {
		t.Skip("nothing was published yet")
	}
	c.add(step{what: publishingAgain, tx: tx.number, act: rapid.SampledFrom(known).Draw(t, "event")})
}

// endOne commits a transaction, or rolls it back.
func (c *cms) endOne(t *rapid.T) {
	c.t = t
	if len(c.open) == 0 {
		t.Skip("no transaction is open")
	}
	c.end(rapid.SampledFrom(c.open).Draw(t, "transaction"))
}

// endAll ends what is open.
func (c *cms) endAll(t *rapid.T) {
	c.t = t
	for len(c.open) > 0 {
		c.end(c.open[0])
	}
}

// settle waits until all is quiet.
func (c *cms) settle(t *rapid.T) {
	if len(c.recent) == 0 {
		t.Skip("all is quiet")
	}
	c.quiet()
}

func (c *cms) add(s step) { c.steps = append(c.steps, s) }

// transaction is an open one, or a new one.
func (c *cms) transaction() *transaction {
	if len(c.open) > 0 && (len(c.open) == c.mostOpen || rapid.Bool().Draw(c.t, "go on")) {
		return rapid.SampledFrom(c.open).Draw(c.t, "transaction")
	}
	return c.begin()
}

func (c *cms) begin() *transaction {
	c.begun++
	tx := &transaction{number: c.begun}
	c.open = append(c.open, tx)
	return tx
}

// view is what a transaction sees: what was committed, and its own.
func (c *cms) view(tx *transaction) model {
	seen := c.model.clone()
	for _, a := range tx.acts {
		seen.apply(a)
	}
	return seen
}

// draw makes up an event by what its transaction sees, of the same media as
// another if there is one.
func (c *cms) draw(seen model, like *act) (*act, bool) {
	a := &act{}
	if like != nil && seen[like.place].exists {
		a.place, a.media = like.place, like.media
	} else {
		a.place = rapid.SampledFrom(seen.places()).Draw(c.t, "place")
	}
	switch rapid.SampledFrom([]string{"upload", "upload", "upload", "rename", "rename", "delete", "create", "remove"}).Draw(c.t, "event") {
	case "create":
		a.source, a.kind, a.media = a.place, events.EnvironmentCreatedType, ""
		a.environment = rapid.SampledFrom(environments).Draw(c.t, "new environment")
		return a, !seen[a.place].exists
	case "remove":
		a.kind, a.media = events.EnvironmentDeletedType, ""
		return a, a.environment != ""
	case "upload":
		a.kind = events.MediaUploadedType
	case "rename":
		a.kind = events.MediaRenamedType
	case "delete":
		a.kind = events.MediaDeletedType
	}
	return a, c.drawMedia(seen[a.place], a)
}

// drawMedia draws the media and its names. Now and then the name is another
// media's, or the media isn't there.
func (c *cms) drawMedia(s *site, a *act) bool {
	if a.media == "" {
		a.media = rapid.SampledFrom(medias).Draw(c.t, "media")
	}
	a.name = rapid.SampledFrom(names).Draw(c.t, "name")
	odd := c.oneIn(10, "odd")
	// Versions don't fall, and often share a second, which is all that the
	// metadata tells of them.
	c.version += rapid.SampledFrom([]int64{1_000_000, 400_000, 1, 0}).Draw(c.t, "later by")
	a.version = c.version
	old := s.rows[a.media]
	switch a.kind {
	case events.MediaUploadedType:
		a.content = fmt.Sprint(strings.Repeat("bytes of ", rapid.IntRange(0, 3).Draw(c.t, "length")), c.made+1)
		a.vague = c.oneIn(4, "vague")
		// A payload needn't tell the name before.
		if old.live() && old.name != a.name && !c.oneIn(5, "untold") {
			a.from = old.name
		}
		return odd || !s.taken(a)
	case events.MediaRenamedType:
		a.from = old.name
		if !old.live() {
			a.from = "unknown.txt"
			return odd && s.deleted == 0
		}
		return a.name != old.name && (odd || !s.taken(a))
	default:
		if old.live() {
			a.name = old.name
		}
		return old.live() || odd
	}
}

// locked tells whether other open transactions keep this one from publishing
// the event, as their row locks would. Some CMSs lock too little.
func (c *cms) locked(tx *transaction, a *act) bool {
	racing := c.oneIn(6, "racing")
	for _, other := range c.open {
		for _, b := range other.acts {
			if other == tx || !a.ordered(b) {
				continue
			}
			// Whether an environment is there is locked in any case.
			if !racing || b.ofPlace() && (a.ofPlace() || a.place == b.place) {
				return true
			}
		}
	}
	return false
}

// end commits or rolls back.
func (c *cms) end(tx *transaction) {
	c.open = slices.DeleteFunc(c.open, func(other *transaction) bool { return other == tx })
	if c.oneIn(6, "roll back") || c.hopeless(tx) {
		c.add(step{what: rollingBack, tx: tx.number})
		return
	}
	if c.mustBeQuiet(tx) {
		c.quiet()
	}
	c.add(step{what: committing, tx: tx.number})
	for _, a := range tx.acts {
		c.commit(a)
	}
}

func (c *cms) commit(a *act) {
	s := c.model[a.place]
	if old := s.rows[a.media]; old.live() && old.name != a.name {
		a.freed = old.name
	}
	c.ends[a] = []string{c.model.apply(a)}
	switch {
	case a.kind == events.EnvironmentDeletedType:
		// What still waits in the environment never runs.
		for _, b := range c.recent {
			if b.place == a.place {
				c.ends[b] = append(c.ends[b], superseded)
			}
		}
	case a.kind == events.MediaDeletedType && slices.ContainsFunc(c.recent, func(b *act) bool {
		return b.place == a.place && b.kind == events.EnvironmentCreatedType
	}):
		// It doesn't wait for a media that is yet to join the copy.
		c.ends[a] = append(c.ends[a], skipped)
	case a.kind == events.MediaRenamedType && s.deleted > 0 && !s.rows[a.media].live():
		// Whether a dead event came before a deletion was open, too.
		c.ends[a] = append(c.ends[a], skipped, predecessorDead)
	}
	c.recent, c.all = append(c.recent, a), append(c.all, a)
}

func (c *cms) quiet() {
	c.add(step{what: settling, want: c.model.clone()})
	c.recent = nil
}

// mustBeQuiet tells whether what the transaction brings may only come after
// what was committed has run: it comes late, or would be unordered.
func (c *cms) mustBeQuiet(tx *transaction) bool {
	seen := c.model.clone()
	for i, a := range tx.acts {
		late := func(b *act) bool {
			return b.n > a.n && (a.ordered(b) || a.place == b.place && a.mentionsName(b.freed))
		}
		if slices.ContainsFunc(c.recent, late) || c.unordered(seen, a, slices.Concat(c.recent, tx.acts[:i])) {
			return true
		}
		seen.apply(a)
	}
	return false
}

// hopeless tells whether the transaction's events have become unordered among
// themselves, by what others committed meanwhile.
func (c *cms) hopeless(tx *transaction) bool {
	seen := c.model.clone()
	for i, a := range tx.acts {
		if c.unordered(seen, a, tx.acts[:i]) {
			return true
		}
		seen.apply(a)
	}
	return false
}

// unordered tells whether how the event ends depends on what the order of
// events leaves open, where others before it have not run yet.
func (c *cms) unordered(seen model, a *act, before []*act) bool {
	s := seen[a.place]
	for _, b := range before {
		switch old := s.rows[a.media]; {
		case b.place == a.place && !b.ofPlace() && !a.ofPlace():
			// It gives up a name without a word, and the other wants that name.
			if a.media != b.media && old.live() && old.name != a.name && !a.mentionsName(old.name) && b.mentionsName(old.name) {
				return true
			}
		case b.place == a.place && b.kind == events.EnvironmentCreatedType && !a.ofPlace():
			// While the name's holder waits to join the copy, nobody knows.
			if s.taken(a) {
				return true
			}
		case b.source == a.place && b.kind == events.EnvironmentCreatedType && a.kind == events.EnvironmentDeletedType:
			// It may supersede what the copy waits for, which then goes without.
			if slices.ContainsFunc(before, func(e *act) bool { return e.place == a.place && !e.ofPlace() && e.n < b.n }) {
				return true
			}
		}
	}
	return false
}
