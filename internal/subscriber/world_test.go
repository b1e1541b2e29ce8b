package subscriber_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// handler decides how an attempt ends. It honours the context.
type handler func(ctx context.Context, d *outbox.Delivery) *outbox.Verdict

// worker is a subscriber that runs, and its handlers.
type worker struct {
	*subscriber.Subscriber
	t      testing.TB
	cancel context.CancelFunc
	ended  chan error
}

func configured(name string, change ...func(*subscriber.Config)) subscriber.Config {
	config := subscriber.Config{
		Worker: name, Concurrency: 8, LaneConcurrency: 4, Lease: time.Minute, Poll: 5 * time.Millisecond,
		Grace: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Failed: func(_ *outbox.Event, err error) outbox.Verdict {
			return outbox.Verdict{Kind: outbox.Die, Failure: failure.New(failure.Permanent, failure.Internal, "%w", err)}
		},
	}
	for _, c := range change {
		c(&config)
	}
	return config
}

// start runs a worker until it is stopped, at the latest with the test.
func start(t testing.TB, store *outbox.Store, config subscriber.Config, handle handler) *worker {
	t.Helper()
	s, err := subscriber.New(store, config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &worker{Subscriber: s, t: t, cancel: cancel, ended: make(chan error, 1)}
	go func() {
		var consuming sync.WaitGroup
		for _, topic := range events.Types() {
			consuming.Go(func() { route(s, topic, handle) })
		}
		err := s.Run(ctx)
		_ = s.Close()
		consuming.Wait()
		w.ended <- err
		close(w.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-w.ended
	})
	return w
}

// route hands each message to a goroutine of its own, as Watermill's router does.
func route(s *subscriber.Subscriber, topic string, handle handler) {
	var handling sync.WaitGroup
	defer handling.Wait()
	messages, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		panic(err)
	}
	for msg := range messages {
		handling.Go(func() {
			d, _ := outbox.DeliveryFrom(msg.Context())
			if verdict := handle(msg.Context(), d); verdict != nil {
				d.Settle(*verdict)
			}
			msg.Ack()
		})
	}
}

// stop drains the worker.
func (w *worker) stop() error {
	w.cancel()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(30 * time.Second):
		w.t.Fatal("the worker doesn't stop")
		return nil
	}
}

// hands are handlers that do what the test says: each event waits until it is
// told how to end.
type hands struct {
	mu      sync.Mutex
	waiting map[int64]*attempt
	started []int64
	most    int
}

type attempt struct {
	*outbox.Delivery
	tell chan *outbox.Verdict
}

func newHands() *hands { return &hands{waiting: make(map[int64]*attempt)} }

func (h *hands) handle(ctx context.Context, d *outbox.Delivery) *outbox.Verdict {
	a := &attempt{Delivery: d, tell: make(chan *outbox.Verdict, 1)}
	h.mu.Lock()
	h.waiting[d.Event.Sequence] = a
	h.started = append(h.started, d.Event.Sequence)
	h.most = max(h.most, len(h.waiting))
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.waiting[d.Event.Sequence] == a {
			delete(h.waiting, d.Event.Sequence)
		}
	}()
	select {
	case verdict := <-a.tell:
		return verdict
	case <-ctx.Done():
		return &outbox.Verdict{Kind: outbox.Yield, Failure: failure.New(failure.Interrupted, failure.Canceled, "interrupted")}
	}
}

// running has the sequences of the events that run, in order.
func (h *hands) running() []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.waiting))
}

func (h *hands) runs(sequences ...int64) bool {
	return slices.Equal(h.running(), slices.Sorted(slices.Values(sequences)))
}

// runningOf counts, by service, the events that run.
func (h *hands) runningOf(service string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, a := range h.waiting {
		if a.Event.ServiceID == service {
			n++
		}
	}
	return n
}

func (h *hands) startedCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.started)
}

// end tells a running event how its attempt ends.
func (h *hands) end(sequence int64, verdict outbox.Verdict) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.waiting[sequence]; a != nil {
		delete(h.waiting, sequence)
		a.tell <- &verdict
	}
}

func (h *hands) delivery(sequence int64) *outbox.Delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.waiting[sequence]; a != nil {
		return a.Delivery
	}
	return nil
}

// ends lets what runs end as the verdict says, until the condition holds.
func (w *world) ends(what string, h *hands, verdict outbox.Verdict, holds func() bool) {
	w.T.Helper()
	w.Await(what, func() bool {
		for _, sequence := range h.running() {
			h.end(sequence, verdict)
		}
		return holds()
	})
}

func (w *world) finished() int {
	return outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE finished_at IS NOT NULL`)
}

// settles waits until the worker has looked again some times, so that what
// it would start has started.
func (w *world) settles(h *hands) {
	w.T.Helper()
	quiet, last := time.Now(), -1
	w.Await("nothing more starts", func() bool {
		if n := h.startedCount(); n != last {
			quiet, last = time.Now(), n
		}
		return time.Since(quiet) > 100*time.Millisecond
	})
}

// through is the world as a worker sees it behind a network of its own.
func (w *world) through(databaseURL string) (*pgtest.Network, *world) {
	w.T.Helper()
	n := pgtest.StartNetwork(w.T, databaseURL)
	db, err := database.Open(w.T.Context(), n.URL, database.DefaultSchema)
	if err != nil {
		w.T.Fatal(err)
	}
	db.SetMaxOpenConns(5) // many workers share one server
	w.T.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			w.T.Log("close:", err)
		}
	})
	other := &world{&outboxtest.World{T: w.T, DB: db}}
	other.Store = other.Another()
	return n, other
}
