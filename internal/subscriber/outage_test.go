package subscriber_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// scenario is a number of events and what their attempts come to.
type scenario struct {
	Events  []scripted
	Workers int
	// Reading is how many bytes of payloads a worker reads at once.
	Reading int
	// Kills says after how many attempts each worker but the last is killed;
	// 0 is never.
	Kills []int
	// Cuts says after how many attempts the last worker's network fails, Losses
	// after how many each of its connections loses the answer to its next commit.
	Cuts, Losses []int
}

// scripted is an event, and how its attempts end before it completes or dies.
type scripted struct {
	Lane     int
	Media    string
	Names    []string
	Barrier  bool
	Attempts []string
	Dies     bool
}

func (e scripted) event() events.Event {
	if e.Barrier {
		return events.EnvironmentDeleted{}
	}
	return outboxtest.Touch(e.Media, e.Names...)
}

func (e scripted) resources() []string {
	if e.Barrier {
		return []string{e.everything()}
	}
	list := []string{fmt.Sprint(e.Lane, " m:", e.Media)}
	if len(e.Names) == 0 {
		return append(list, fmt.Sprint(e.Lane, " n:of ", e.Media))
	}
	for _, name := range e.Names {
		list = append(list, fmt.Sprint(e.Lane, " n:", name))
	}
	return slices.Compact(list)
}

func (e scripted) everything() string { return fmt.Sprint(e.Lane, " *") }

func (e scripted) excludes(other scripted) bool {
	if e.Barrier || other.Barrier {
		return e.Lane == other.Lane
	}
	return slices.ContainsFunc(e.resources(), func(r string) bool { return slices.Contains(other.resources(), r) })
}

var scenarios = rapid.Custom(func(t *rapid.T) scenario {
	var s scenario
	lanes := rapid.IntRange(1, 4).Draw(t, "lanes")
	media := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	name := rapid.SampledFrom([]string{"p", "q", "r", "s", "t", "u", "v", "w"})
	ending := rapid.SampledFrom([]string{"retry", "retry", "defer", "yield", "slow", "behind"})
	for range rapid.IntRange(10, 60).Draw(t, "events") {
		e := scripted{
			Lane:     rapid.IntRange(1, lanes).Draw(t, "lane"),
			Media:    media.Draw(t, "media"),
			Names:    rapid.SliceOfN(name, 0, 2).Draw(t, "names"),
			Attempts: rapid.SliceOfN(ending, 0, rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(t, "most")).Draw(t, "attempts"),
			Dies:     rapid.IntRange(0, 9).Draw(t, "dies") == 0,
			Barrier:  rapid.IntRange(0, 24).Draw(t, "barrier") == 0,
		}
		s.Events = append(s.Events, e)
	}
	s.Reading = rapid.SampledFrom([]int{1, 300, 8 << 20}).Draw(t, "bytes of a reading")
	s.Workers = rapid.IntRange(2, 3).Draw(t, "workers")
	for range s.Workers - 1 {
		s.Kills = append(s.Kills, rapid.SampledFrom([]int{0, 1, 5, 15}).Draw(t, "killed after"))
	}
	s.Cuts = rapid.SliceOfN(rapid.IntRange(1, 30), 0, 2).Draw(t, "cuts")
	s.Losses = rapid.SliceOfN(rapid.IntRange(1, 100), 0, 10).Draw(t, "losses")
	return s
})

// stagehands run a scenario's events and watch its promises.
type stagehands struct {
	mu       sync.Mutex
	script   map[int64]scripted
	left     map[int64][]string // attempts before the last
	running  map[int64]bool
	attempts map[int]int // by worker
	faults   []string
}

// handler is what one worker's handlers do. dead ends with the worker.
func (h *stagehands) handler(worker int, dead context.Context, attempted func(n int)) handler {
	return func(ctx context.Context, d *outbox.Delivery) *outbox.Verdict {
		if dead.Err() != nil {
			<-ctx.Done()
			return nil
		}
		if d.Event.Sequence < d.DeletedSequence { // read before the deletion ended it
			return &outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Superseded}
		}
		verdict, n := h.begin(worker, d.Event)
		attempted(n)
		// Others get their turn while this one is under way.
		timer := time.NewTimer(time.Duration(rand.IntN(5)) * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			verdict = nil
		case <-dead.Done():
		}
		h.leave(d.Event.Sequence)
		if dead.Err() != nil {
			<-ctx.Done() // a killed process says nothing more
			return nil
		}
		return verdict
	}
}

func (h *stagehands) begin(worker int, e *outbox.Event) (*outbox.Verdict, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attempts[worker]++
	script := h.script[e.Sequence]
	for other := range h.running {
		if script.excludes(h.script[other]) {
			h.faults = append(h.faults, fmt.Sprintf("%d began while %d ran: %+v, %+v", e.Sequence, other, script, h.script[other]))
		}
	}
	h.running[e.Sequence] = true
	verdict := outboxtest.Done
	if left := h.left[e.Sequence]; len(left) > 0 {
		h.left[e.Sequence] = left[1:]
		verdict = ends(left[0])
	} else if script.Dies {
		verdict = outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined}
	}
	return &verdict, h.attempts[worker]
}

func (h *stagehands) leave(sequence int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.running, sequence)
}

// supersedable tells whether a deletion may have ended the event.
func (h *stagehands) supersedable(sequence int64) bool {
	for other, script := range h.script {
		if script.Barrier && other > sequence && script.Lane == h.script[sequence].Lane {
			return true
		}
	}
	return false
}

// checkBarriers: what was published before a deletion takes effect before it
// or never, what was published after it after it, unless the deletion died.
func (h *stagehands) checkBarriers(t *testing.T, order []int64) {
	t.Helper()
	for at, barrier := range order {
		if !h.script[barrier].Barrier {
			continue
		}
		for i, other := range order {
			if h.script[other].Lane == h.script[barrier].Lane && (i < at) != (other < barrier) && i != at {
				t.Errorf("event %d took effect on the wrong side of deletion %d", other, barrier)
			}
		}
	}
}

func ends(how string) outbox.Verdict {
	switch how {
	case "retry":
		return outboxtest.RetryIn(time.Duration(rand.IntN(20)) * time.Millisecond)
	case "defer":
		return outbox.Verdict{Kind: outbox.Defer, Delay: time.Duration(rand.IntN(20)) * time.Millisecond}
	case "behind":
		return outbox.Verdict{Kind: outbox.Defer, Behind: []string{"m:a"}}
	case "slow":
		return verdictOf(failure.Transient, failure.Timeout, outbox.Retry, time.Millisecond)
	default:
		return verdictOf(failure.Interrupted, failure.Canceled, outbox.Yield, 0)
	}
}

// Whatever its attempts come to, whoever is killed and whenever the network
// fails: each event ends once, in order, and no lane is stuck.
func TestEveryEventEndsOnceAndInOrderThroughFailuresAndKills(t *testing.T) {
	t.Parallel()
	count := 8
	if testing.Short() {
		count = 2
	}
	for range count {
		seed := rand.IntN(1 << 30)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			play(t, scenarios.Example(seed))
		})
	}
}

func play(t *testing.T, s scenario) {
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, databaseURL))
	w.DB.SetMaxOpenConns(3)
	h := &stagehands{script: make(map[int64]scripted), left: make(map[int64][]string),
		running: make(map[int64]bool), attempts: make(map[int]int)}
	shared := make(map[int64][]string)
	var sequences []int64
	for _, e := range s.Events {
		sequence := w.PublishIn(fmt.Sprint("service ", e.Lane), "dev", e.event())[0]
		h.script[sequence], h.left[sequence] = e, slices.Clone(e.Attempts)
		shared[sequence] = e.resources()
		sequences = append(sequences, sequence)
	}

	var survivor *worker
	for i := range s.Workers {
		net, behind := w.through(databaseURL)
		behind.Store.MaxReading = s.Reading
		dead, die := context.WithCancel(context.Background())
		t.Cleanup(die)
		attempted := func(n int) {
			last := i == s.Workers-1
			if !last && n == s.Kills[i] {
				die()
				net.Cut()
			}
			if last && slices.Contains(s.Cuts, n) {
				net.Cut()
				net.Mend()
			}
			if last && slices.Contains(s.Losses, n) {
				net.LoseAnswers()
			}
		}
		survivor = start(t, behind.Store, configured(fmt.Sprint("worker ", i), func(c *subscriber.Config) {
			c.Lease = 2 * time.Second
		}), h.handler(i, dead, attempted))
	}
	w.Await("every event ends", func() bool { return w.finished() == len(s.Events) })

	h.mu.Lock()
	for _, fault := range h.faults {
		t.Error(fault)
	}
	h.mu.Unlock()
	for _, sequence := range sequences {
		want := []string{"completed done"}
		if h.script[sequence].Dies {
			want = []string{"dead source_gone"}
		}
		if h.supersedable(sequence) {
			want = append(want, "completed superseded")
		}
		if got := w.State(sequence); !slices.Contains(want, got) {
			t.Errorf("event %d is %s, want it %s", sequence, got, strings.Join(want, " or "))
		}
	}
	order := w.Effects()
	outboxtest.CheckOrder(t, order, shared)
	h.checkBarriers(t, order)
	if unique := slices.Compact(slices.Sorted(slices.Values(order))); len(unique) != len(order) {
		t.Errorf("%d effects of %d events", len(order), len(unique))
	}
	if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {holds}`); n > 0 {
		t.Errorf("%d holds are left\n%s", n, w.Dump())
	}
	w.Await("nothing is left to do", func() bool {
		idle, err := w.Store.Idle(t.Context())
		return err == nil && idle
	})
	if err := survivor.stop(); err != nil && !strings.Contains(err.Error(), "give lanes back") {
		t.Error(err)
	}
}

// The database may be away for some seconds: what ran is settled afterwards,
// under the same outboxtest.Lease, and the worker goes on.
func TestAWorkerOutlivesItsDatabasesOutage(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, databaseURL))
	w.PublishMany("s", 30)
	net, behind := w.through(databaseURL)
	h := newHands()
	start(t, behind.Store, configured("w"), h.handle)
	w.Await("some run", func() bool { return len(h.running()) == 2 })
	net.Cut()
	first := h.running()
	for _, sequence := range first {
		h.end(sequence, outboxtest.Done)
	}
	away := time.Now()
	w.Await("a while passes", func() bool { return time.Since(away) > 2*time.Second })
	if n := w.finished(); n > 0 {
		t.Fatalf("%d finished without a database", n)
	}
	net.Mend()
	w.ends("all end", h, outboxtest.Done, func() bool { return w.finished() == 30 })
	if n := len(h.started); n != 30 {
		t.Errorf("%d attempts of 30 events", n)
	}
	if n := outboxtest.One[int](w.World, `SELECT lease_token FROM {lanes}`); n != 1 {
		t.Errorf("the lane was leased %d times", n)
	}
}

// A worker that can't renew stops its calls a fifth of the lease before the
// end, and can't complete anything after another took over.
func TestAWorkerThatCanNotRenewStopsBeforeItsLeaseEnds(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, databaseURL))
	event := w.Publish("s", outboxtest.Touch("a"))[0]
	net, behind := w.through(databaseURL)
	stopped := make(chan error, 1)
	refused := make(chan bool, 1)
	const lease = 3 * time.Second
	began := time.Now()
	start(t, behind.Store, configured("cut off", func(c *subscriber.Config) { c.Lease = lease }),
		func(ctx context.Context, d *outbox.Delivery) *outbox.Verdict {
			if d.Guard() != nil {
				t.Error("nothing may be sent although the lease is good")
			}
			net.Cut()
			<-ctx.Done()
			stopped <- context.Cause(ctx)
			refused <- d.Guard() != nil
			return &outboxtest.Done // too late
		})
	if cause := <-stopped; cause == nil || !strings.Contains(cause.Error(), outbox.ErrLeaseLost.Error()) {
		t.Errorf("the calls were cancelled because of %v", cause)
	}
	if !<-refused {
		t.Error("something may be sent although the lease ends")
	}
	if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {lanes} WHERE leased_until > {now}`); n != 1 && time.Since(began) < lease {
		t.Error("the lease had lapsed before the calls were cancelled")
	}
	start(t, w.Store, configured("heir", func(c *subscriber.Config) { c.Lease = lease }),
		func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			if !d.MayHaveRun {
				t.Error("the heir doesn't know that the event may have run")
			}
			return &outboxtest.Done
		})
	w.Await("another worker completes it", func() bool { return w.State(event) == "completed done" })
	net.Mend()
	if diff := cmp.Diff([]string{"heir"}, outboxtest.All[string](w.World, `SELECT worker FROM {effects}`)); diff != "" {
		t.Error(diff)
	}
}
