package outbox_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// ahead looks past the events of those services of which there are enough.
func (w *world) ahead(most int, carried []int64, enough ...string) outbox.Assigned {
	w.t.Helper()
	return w.aheadIf(false, most, carried, enough...)
}

func (w *world) aheadIf(hungry bool, most int, carried []int64, enough ...string) outbox.Assigned {
	w.t.Helper()
	done, err := w.store.Assign(w.t.Context(), lookAhead(hungry, most, carried, enough...))
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

func lookAhead(hungry bool, most int, carried []int64, enough ...string) outbox.Look {
	return outbox.Look{
		Worker: "w", Lease: time.Hour, Most: most, Take: takeAll,
		Carried: func(int64) []int64 { return append([]int64{}, carried...) },
		Ahead:   true, Hungry: hungry, Enough: func(service, _ string) bool { return slices.Contains(enough, service) },
	}
}

// takeAll has room in every lane.
func takeAll() func(*outbox.LaneState) bool {
	return func(lane *outbox.LaneState) bool {
		return lane.Free() || lane.LeasedBy != nil && *lane.LeasedBy == "w" && lane.Current(lane.Token, lane.Wake)
	}
}

// takeUpTo has room for n events of such lanes.
func takeUpTo(n int) func() func(*outbox.LaneState) bool {
	return func() func(*outbox.LaneState) bool {
		room, takes := n, takeAll()
		return func(lane *outbox.LaneState) bool {
			if room == 0 || !takes(lane) {
				return false
			}
			room--
			return true
		}
	}
}

// What one customer publishes at once doesn't hide what another does, and
// nothing is written to see past it.
func TestALookAheadWalksOverABulkWithoutWritingIt(t *testing.T) {
	each(t, func(w *world) {
		w.store.WalkBy(10)
		for i := range 25 {
			w.publish("bulk", touch(fmt.Sprint("m", i)))
		}
		small := w.publish("small", touch("a"), touch("b"))
		var found []int64
		for range 10 {
			found = append(found, sequences(w.ahead(5, found, "bulk").Taken)...)
		}
		if diff := cmp.Diff(small, found); diff != "" {
			w.t.Error(diff)
		}
		if got := w.assigned(); len(got) > 0 {
			w.t.Errorf("%d events were written", len(got))
		}
		more := w.publish("small", touch("c"))
		if diff := cmp.Diff(more, sequences(w.ahead(5, found, "bulk").Taken)); diff != "" {
			w.t.Errorf("at the end of the pass: %s", diff)
		}
	})
}

// However much else is walked over: what comes after the event in the source
// must not be in the copy.
func TestALookAheadWritesWhatASnapshotMustSee(t *testing.T) {
	each(t, func(w *world) {
		before := w.publish("s", touch("a"))
		w.take("another")
		bulk := w.publish("bulk", touch("a"), touch("b"))
		w.ahead(9, nil, "bulk", "s")
		before = append(before, w.publishIn("s", "new", touch("a"))...)
		created := w.publishIn("s", "new", events.EnvironmentCreated{EnvironmentServiceID: "new"})[0]
		after := append(w.publish("s", touch("b")), w.publishIn("s", "new", touch("b"))...)
		other := w.publish("other", touch("a"))
		done := w.ahead(9, nil, "bulk", "s")
		if diff := cmp.Diff(append(before, created), w.assigned()); diff != "" || !done.Created {
			w.t.Errorf("%s, and it says %+v", diff, done)
		}
		if diff := cmp.Diff(other, sequences(done.Taken)); diff != "" {
			w.t.Errorf("took %s", diff)
		}
		for range 4 {
			if done := w.ahead(9, other); len(done.Taken) > 0 && done.Taken[0].ServiceID == "s" {
				w.t.Errorf("took %v of an environment that waits for the snapshot", sequences(done.Taken))
			}
		}
		w.assign()
		if diff := cmp.Diff(slices.Concat(before[:1], bulk, before[1:], []int64{created}, after, other), w.assigned()); diff != "" {
			w.t.Error(diff)
		}
	})
}

// However much comes before it in its source: that is written batch by batch.
func TestASnapshotIsFoundBehindMoreThanABatch(t *testing.T) {
	for name, look := range map[string]func(w *world, carried []int64) outbox.Assigned{
		"an ordinary look": func(w *world, carried []int64) outbox.Assigned { return w.take("w", carried...) },
		"a look ahead":     func(w *world, carried []int64) outbox.Assigned { return w.aheadIf(true, 9, carried) },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w *world) {
				before := w.publishMany("s", outbox.AssignBatch+100)
				created := w.publishIn("s", "new", events.EnvironmentCreated{EnvironmentServiceID: "new"})[0]
				w.publish("s", touch("b"))
				other := w.publish("other", touch("a"))
				var carried []int64
				for done := (outbox.Assigned{}); !done.Created; {
					done = look(w, carried)
					carried = append(carried, sequences(done.Taken)...)
					got, want := w.assigned(), append(before, created)
					if n := len(got); n > len(want) || !slices.Equal(got, want[:n]) || done.Created != (n == len(want)) {
						w.t.Fatalf("%d events are written, snapshot due: %t", n, done.Created)
					}
					w.publish("s", touch("c"))
				}
				if carried = carried[max(len(carried)-1, 0):]; !slices.Equal(carried, other) {
					w.t.Errorf("took %v last, want %v", carried, other)
				}
				for range 3 {
					w.take("w", other...)
				}
				w.assign()
				if n := one[int](w, `SELECT count(*) FROM {outbox} WHERE lane_id IS NULL AND service_id = 's'`); n > 0 {
					w.t.Errorf("%d events are not found any more", n)
				}
			})
		})
	}
}

// A pass remembers since where an environment is hidden, also where events that
// create others from it are found, which write a batch of what comes before.
func TestWhatIsHiddenIsGoneBackForFromItsBeginning(t *testing.T) {
	for name, sources := range map[string][]string{"one source": {"one"}, "a source behind another's backlog": {"one", "two"}} {
		t.Run(name, func(t *testing.T) {
			each(t, func(w *world) {
				w.publishMany("one", outbox.AssignBatch+1)
				last := sources[len(sources)-1]
				list := w.publish(last, touch("a"))
				for range 3 { // what was seen counts as passed from the second look on
					w.ahead(50, nil, sources...)
				}
				list = append(list, w.publish(last, touch("a"))...)
				w.ahead(50, nil, sources...)
				for _, source := range sources {
					w.publishIn(source, "new", events.EnvironmentCreated{EnvironmentServiceID: "copy of " + source})
				}
				w.ahead(50, nil, sources...)
				var found []int64
				for range 5 {
					done := w.aheadIf(true, 50, found, sources[:len(sources)-1]...)
					found = append(append(found, sequences(done.Taken)...), w.assigned()...)
					if slices.Contains(found, list[1]) && !slices.Contains(found, list[0]) {
						w.t.Fatalf("%d is found before %d", list[1], list[0])
					}
				}
				if !slices.Contains(found, list[1]) {
					w.t.Errorf("%d isn't found any more", list[1])
				}
			})
		})
	}
}

// Of the environments that are hidden, those are gone back for of which the
// worker can do more; what is published meanwhile doesn't wait for that.
func TestAPassGoesBackForWhatIsWanted(t *testing.T) {
	each(t, func(w *world) {
		w.store.WalkBy(3)
		first := w.publishMany("first", 8)
		w.publishMany("second", 8)
		var found []int64
		for range 7 {
			found = append(found, sequences(w.ahead(9, found, "first", "second").Taken)...)
		}
		var news []int64
		for range 4 {
			news = append(news, w.publish("other", touch("a"))...)
			for range 2 {
				found = append(found, sequences(w.ahead(9, found, "second").Taken)...)
			}
			if last := news[len(news)-1]; !slices.Contains(found, last) {
				w.t.Errorf("event %d waits for the way back", last)
			}
		}
		slices.Sort(found)
		if diff := cmp.Diff(append(first, news...), found); diff != "" {
			w.t.Error(diff)
		}
		if got := w.assigned(); len(got) > 0 {
			w.t.Errorf("%d events were written", len(got))
		}
	})
}

// At the end of a pass, one query finds what is published next, and nothing of
// what is hidden.
func TestAPeekAheadTakesWhatIsPublishedAtTheEndOfAPass(t *testing.T) {
	each(t, func(w *world) {
		w.store.WalkBy(3)
		found := append(w.publish("small", touch("a")), w.publish("bulk", touch("a"))...)
		w.ahead(9, nil)
		bulk := w.publishMany("bulk", 8)
		peek := func(enough ...string) ([]int64, bool) {
			done, ok, err := w.store.Peek(w.t.Context(), lookAhead(false, 9, found, enough...))
			if err != nil {
				w.t.Fatal(err)
			}
			return sequences(done.Taken), ok
		}
		for w.ahead(9, found, "bulk").More {
			if got, ok := peek("bulk"); ok || len(got) > 0 {
				w.t.Errorf("took %v on the way", got)
			}
		}
		w.publish("bulk", touch("z"))
		next := w.publish("small", touch("b"))
		w.publish("bulk", touch("z"))
		got, ok := peek("bulk")
		if diff := cmp.Diff(next, got); diff != "" || !ok {
			w.t.Errorf("at the end: %s", diff)
		}
		found = append(found, next...)
		w.publish("small", touch("c"))
		if got, ok := peek(); ok || len(got) > 0 {
			w.t.Errorf("took %v although the pass must go back for %v", got, bulk)
		}
	})
}

func TestALookAheadLeavesWhatAnotherWorkerHolds(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		w.take("another")
		w.publish("s", touch("b"))
		w.exec(`UPDATE {outbox} SET created_at = 0`)
		free := w.publish("free", touch("a"))
		if diff := cmp.Diff(free, sequences(w.ahead(9, nil).Taken)); diff != "" {
			w.t.Error(diff)
		}
		if got := w.assigned(); len(got) > 0 {
			w.t.Errorf("%v were written into another's lane", got)
		}
	})
}

// What a customer publishes whose lane is held isn't written either, and found
// once the lane is released.
func TestALookAheadWalksOverWhatIsHeld(t *testing.T) {
	each(t, func(w *world) {
		w.store.WalkBy(10)
		found := w.publish("paused", touch("a"))
		w.ahead(5, nil)
		w.exec(`UPDATE {lanes} SET held = true WHERE service_id = 'paused'`)
		paused := w.publishMany("paused", 25)
		small := w.publish("small", touch("a"))
		look := func() {
			w.t.Helper()
			found = append(found, sequences(w.aheadIf(true, 5, found).Taken)...)
			if got := w.assigned(); len(got) > 0 {
				w.t.Fatalf("%d events were written", len(got))
			}
		}
		for !slices.Contains(found, small[0]) {
			look()
		}
		w.exec(`UPDATE {lanes} SET held = false WHERE service_id = 'paused'`)
		for !slices.Contains(found, paused[24]) {
			look()
		}
	})
}

// Whatever transactions do, and whatever there is enough of, events of one
// environment are found in the order in which they are visible.
func TestLooksAheadFindWhatIsVisibleInItsOrder(t *testing.T) {
	each(t, func(w *world) {
		rapid.Check(w.t.(*testing.T), func(t *rapid.T) {
			w.store = w.another()
			w.store.WalkBy(rapid.IntRange(1, 6).Draw(t, "stretch"))
			w.store.Batch(rapid.IntRange(1, 6).Draw(t, "batch"))
			p := &aheadPlay{world: w, t: t, services: aheadServices, open: make(map[string]*publication), found: make(map[int64]bool)}
			actions := map[string]func(*rapid.T){
				"begin": p.begin, "insert": p.insert, "end": p.end, "publish": p.publishSome, "look ahead": p.lookAhead, "peek": p.peek,
			}
			switch rapid.SampledFrom([]string{"passes end", "lanes are held", "environments are created"}).Draw(t, "what else") {
			case "passes end":
				actions["look"], actions["let go"] = p.look, p.letGo
			case "lanes are held":
				actions["hold or release"] = p.hold // other looks write what is held
			default:
				// Few services and no open transactions: what is written, a batch at a
				// time, is then often of what was walked over long before.
				actions = map[string]func(*rapid.T){"publish": p.publishSome, "look ahead": p.lookAhead, "create": p.create}
				p.services, p.writes = aheadServices[:2], true
			}
			t.Repeat(actions)
			w.exec(`UPDATE {lanes} SET held = false`)
			p.findTheRest()
			w.exec(`DELETE FROM {copies}`)
			w.exec(`DELETE FROM {outbox}`)
			w.exec(`DELETE FROM {lanes}`)
		})
	})
}

type aheadPlay struct {
	*world
	t        *rapid.T
	names    int
	open     map[string]*publication
	visible  []visibleEvent
	found    map[int64]bool
	services []string
	created  int
	writes   bool
}

type publication struct {
	tx     *sqlx.Tx
	events []visibleEvent
}

type visibleEvent struct {
	sequence int64
	service  string
}

var aheadServices = []string{"a", "b", "c", "d"}

func (p *aheadPlay) event(t *rapid.T, in inserter) visibleEvent {
	service := rapid.SampledFrom(p.services).Draw(t, "service")
	return visibleEvent{p.world.insert(in, service, "", touch("m")), service}
}

func (p *aheadPlay) publishSome(t *rapid.T) {
	for range rapid.IntRange(1, 3).Draw(t, "events") {
		p.visible = append(p.visible, p.event(t, p.db))
	}
}

// create publishes an event before which all earlier ones of that service are
// written.
func (p *aheadPlay) create(t *rapid.T) {
	p.created++
	p.publishIn(rapid.SampledFrom(p.services).Draw(t, "source"), fmt.Sprint("copy ", p.created),
		events.EnvironmentCreated{EnvironmentServiceID: "copy"})
}

func (p *aheadPlay) begin(t *rapid.T) {
	if p.db.Dialect == database.SQLite || len(p.open) == 3 {
		t.Skip("one writer at a time")
	}
	tx, err := p.db.BeginTxx(p.world.t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p.names++
	p.open[fmt.Sprint("tx", p.names)] = &publication{tx: tx}
}

func (p *aheadPlay) any(t *rapid.T) string {
	if len(p.open) == 0 {
		t.Skip("no transaction is open")
	}
	var names []string
	for name := range p.open {
		names = append(names, name)
	}
	slices.Sort(names)
	return rapid.SampledFrom(names).Draw(t, "transaction")
}

func (p *aheadPlay) insert(t *rapid.T) {
	in := p.open[p.any(t)]
	in.events = append(in.events, p.event(t, in.tx))
}

func (p *aheadPlay) end(t *rapid.T) {
	name := p.any(t)
	if rapid.Bool().Draw(t, "commits") {
		if err := p.open[name].tx.Commit(); err != nil {
			t.Fatal(err)
		}
		p.visible = append(p.visible, p.open[name].events...)
	} else if err := p.open[name].tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	delete(p.open, name)
}

func (p *aheadPlay) carried() []int64 {
	list := []int64{}
	for sequence := range p.found {
		list = append(list, sequence)
	}
	slices.Sort(list)
	return list
}

func (p *aheadPlay) lookAhead(t *rapid.T) {
	enough := rapid.SliceOfDistinct(rapid.SampledFrom(p.services), rapid.ID).Draw(t, "enough")
	p.check(p.aheadIf(rapid.Bool().Draw(t, "hungry"), rapid.IntRange(1, 4).Draw(t, "most"), p.carried(), enough...))
}

func (p *aheadPlay) peek(t *rapid.T) {
	enough := rapid.SliceOfDistinct(rapid.SampledFrom(p.services), rapid.ID).Draw(t, "enough")
	done, _, err := p.store.Peek(p.world.t.Context(), lookAhead(rapid.Bool().Draw(t, "hungry"), 4, p.carried(), enough...))
	if err != nil {
		t.Fatal(err)
	}
	p.check(done)
}

func (p *aheadPlay) look(t *rapid.T) {
	done, err := p.store.Assign(p.world.t.Context(), outbox.Look{
		Worker: "w", Lease: time.Hour, Most: rapid.IntRange(1, 4).Draw(t, "most"), Take: takeAll,
		Carried: func(int64) []int64 { return p.carried() },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.check(done)
}

func (p *aheadPlay) letGo(t *rapid.T) {
	taken := p.carried()
	if len(taken) == 0 {
		t.Skip("nothing is taken")
	}
	sequence := rapid.SampledFrom(taken).Draw(t, "event")
	// As where a lane is lost: what was taken after it in the same lane goes, too.
	service := p.serviceOf(sequence)
	for _, later := range taken {
		if later >= sequence && p.serviceOf(later) == service {
			delete(p.found, later)
		}
	}
	p.store.Refind(sequence)
}

func (p *aheadPlay) hold(t *rapid.T) {
	service := rapid.SampledFrom(p.services).Draw(t, "service")
	p.exec(`UPDATE {lanes} SET held = NOT held WHERE service_id = ?`, service)
}

func (p *aheadPlay) serviceOf(sequence int64) string {
	for _, e := range p.visible {
		if e.sequence == sequence {
			return e.service
		}
	}
	return ""
}

func (p *aheadPlay) check(done outbox.Assigned) {
	if len(done.Written) > 0 && !p.writes {
		p.t.Fatalf("wrote into lanes %v", done.Written)
	}
	for _, e := range done.Taken {
		if p.found[e.Sequence] {
			p.t.Fatalf("event %d was found again", e.Sequence)
		}
		p.finds(e.Sequence)
	}
	if p.writes {
		for _, sequence := range p.assigned() {
			p.finds(sequence)
		}
	}
}

// finds notes an event that was taken or written.
func (p *aheadPlay) finds(sequence int64) {
	service := p.serviceOf(sequence)
	if service == "" || p.found[sequence] {
		return // it creates an environment, or was taken before it was written
	}
	for _, other := range p.visible {
		if other.service == service && other.sequence < sequence && !p.found[other.sequence] {
			p.t.Fatalf("event %d of service %s was found before %d, which was visible", sequence, service, other.sequence)
		}
	}
	p.found[sequence] = true
}

func (p *aheadPlay) findTheRest() {
	for name, open := range p.open {
		if err := open.tx.Rollback(); err != nil {
			p.t.Fatal(err)
		}
		delete(p.open, name)
	}
	for range 4 * (len(p.visible) + p.created + 1) {
		done, err := p.store.Assign(p.world.t.Context(), outbox.Look{
			Worker: "w", Lease: time.Hour, Take: takeAll, Carried: func(int64) []int64 { return p.carried() },
		})
		if err != nil {
			p.t.Fatal(err)
		}
		p.check(done)
	}
	if len(p.found) != len(p.visible) {
		p.t.Fatalf("found %d of %d events", len(p.found), len(p.visible))
	}
}

// Its transaction was open for longer than that of what was published after it.
func TestALookAheadFindsALateEventBeforeWhatFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	late, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []int64{w.insert(late, "s", "", touch("a"))}
	found := w.publish("other", touch("a"))
	for range 3 {
		found = append(found, sequences(w.ahead(9, found).Taken)...)
	}
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	want = append(want, w.publish("s", touch("a"))...)
	if diff := cmp.Diff(want, sequences(w.ahead(9, found).Taken)); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsLetGoDuringALookIsFoundByTheNext(t *testing.T) {
	each(t, func(w *world) {
		taken := w.publish("s", touch("a"), touch("b"))
		w.take("w")
		for range 3 { // until all transactions are known to have ended
			w.take("w", taken...)
		}
		look := func(carried func(int64) []int64) []int64 {
			done, err := w.store.Assign(w.t.Context(), outbox.Look{Worker: "w", Lease: lease, Take: takeAll, Carried: carried})
			if err != nil {
				w.t.Fatal(err)
			}
			return sequences(done.Taken)
		}
		look(func(int64) []int64 {
			w.store.Refind(taken[1])
			return taken
		})
		if diff := cmp.Diff(taken[1:], look(func(int64) []int64 { return taken[:1] })); diff != "" {
			w.t.Error(diff)
		}
	})
}
