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
	done, err := w.store.Assign(w.t.Context(), outbox.Look{
		Worker: "w", Lease: time.Hour, Most: most, Take: takeAll,
		Carried: func(int64) []int64 { return append([]int64{}, carried...) },
		Ahead:   true, Enough: func(service, _ string) bool { return slices.Contains(enough, service) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

// takeAll has room in every lane.
func takeAll(lane *outbox.LaneState) bool {
	return lane.Free() || lane.LeasedBy != nil && *lane.LeasedBy == "w" && lane.Current(lane.Token, lane.Wake)
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

// A snapshot looks for earlier events in the database: it comes in its turn, and
// so does what was published in either environment.
func TestALookAheadWalksOverASnapshotAndItsEnvironments(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		w.publishIn("s", "new", events.EnvironmentCreated{EnvironmentServiceID: "new"})
		w.publish("s", touch("b"))
		w.publishIn("s", "new", touch("b"))
		other := w.publish("other", touch("a"))
		found := sequences(w.ahead(9, nil).Taken)
		w.publish("s", touch("c"))
		if found = append(found, sequences(w.ahead(9, found).Taken)...); !cmp.Equal(other, found) {
			w.t.Errorf("found %v, want %v", found, other)
		}
		if done := w.take("w", found...); !done.Created {
			w.t.Error("an ordinary look doesn't find the snapshot")
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

// Whatever transactions do, and whatever there is enough of, events of one
// environment are found in the order in which they are visible.
func TestLooksAheadFindWhatIsVisibleInItsOrder(t *testing.T) {
	each(t, func(w *world) {
		rapid.Check(w.t.(*testing.T), func(t *rapid.T) {
			w.store = w.another()
			w.store.WalkBy(rapid.IntRange(1, 6).Draw(t, "stretch"))
			p := &aheadPlay{world: w, t: t, open: make(map[string]*publication), found: make(map[int64]bool)}
			t.Repeat(map[string]func(*rapid.T){
				"begin": p.begin, "insert": p.insert, "end": p.end, "publish": p.publishOne,
				"look ahead": p.lookAhead, "look": p.look, "let go": p.letGo,
			})
			p.findTheRest()
			w.exec(`DELETE FROM {outbox}`)
			w.exec(`DELETE FROM {lanes}`)
		})
	})
}

type aheadPlay struct {
	*world
	t       *rapid.T
	names   int
	open    map[string]*publication
	visible []visibleEvent
	found   map[int64]bool
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
	service := rapid.SampledFrom(aheadServices).Draw(t, "service")
	return visibleEvent{p.world.insert(in, service, "", touch("m")), service}
}

func (p *aheadPlay) publishOne(t *rapid.T) { p.visible = append(p.visible, p.event(t, p.db)) }

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
	enough := rapid.SliceOfDistinct(rapid.SampledFrom(aheadServices), rapid.ID).Draw(t, "enough")
	p.check(p.ahead(rapid.IntRange(1, 4).Draw(t, "most"), p.carried(), enough...))
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

func (p *aheadPlay) serviceOf(sequence int64) string {
	for _, e := range p.visible {
		if e.sequence == sequence {
			return e.service
		}
	}
	return ""
}

func (p *aheadPlay) check(done outbox.Assigned) {
	if len(done.Written) > 0 {
		p.t.Fatalf("wrote into lanes %v", done.Written)
	}
	for _, e := range done.Taken {
		if p.found[e.Sequence] {
			p.t.Fatalf("event %d was found again", e.Sequence)
		}
		for _, other := range p.visible {
			if other.service == e.ServiceID && other.sequence < e.Sequence && !p.found[other.sequence] {
				p.t.Fatalf("event %d of service %s was found before %d, which was visible", e.Sequence, e.ServiceID, other.sequence)
			}
		}
		p.found[e.Sequence] = true
	}
}

func (p *aheadPlay) findTheRest() {
	for name, open := range p.open {
		if err := open.tx.Rollback(); err != nil {
			p.t.Fatal(err)
		}
		delete(p.open, name)
	}
	for range len(p.visible) + 2 {
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
		w.store.WithoutFullLooks()
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
