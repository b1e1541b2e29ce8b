// Package subscriber is the Watermill subscriber of the outbox: it sees what is
// published, holds lanes, and delivers their events as order and limits allow.
//
// One goroutine fetches (fetch.go): it looks for news, claims lanes, reads on in
// them and gives them back. One settles ends in batches (results.go), one renews
// leases (renew.go), one looks through all lanes now and then (news.go). The
// subscriber's mutex guards all that they share; no query runs while it is held.
package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// Config says how a worker consumes the outbox.
type Config struct {
	// Worker names this process in leases and attempts.
	Worker string
	// Concurrency bounds the events in flight, LaneConcurrency those of one
	// integration.
	Concurrency, LaneConcurrency int
	// Lease is how long a lane belongs to a worker that doesn't renew.
	Lease time.Duration
	// Poll is how long a newly committed event waits at most to be noticed
	// when nothing announces it.
	Poll time.Duration
	// Grace is how long running events may go on after a shutdown began.
	Grace  time.Duration
	Logger *slog.Logger
	// Created is called when the snapshot of an environment is due.
	Created func()
	// Failed judges an event whose end could not be written, for a reason that
	// trying again won't mend.
	Failed func(e *outbox.Event, err error) outbox.Verdict
}

// slowMost is how many slots may be used by events of slow integrations, and by
// those that wait for their sources.
func (c Config) slowMost() int { return max(c.Concurrency/2, 1) }

// usable is how much of a lease may be used: calls are cancelled when no
// renewal has succeeded a fifth of the lease before its end.
func (c Config) usable() time.Duration { return c.Lease * 4 / 5 }

// borrowable is how many slots integrations together may use above the
// starting pace: those of them whose buckets begin to hang keep what they have
// until their calls time out, and must leave some to the others. Where one
// alone may have more, it may have it.
func (c Config) borrowable() int { return max(c.Concurrency/2, c.LaneConcurrency-startingPace) }

// most lanes that one worker holds: it bounds the memory that lanes take
// whose buckets hang.
const maxLanes = 4096

// maxUnsettled bounds the events whose handlers returned before the database
// could be told.
const maxUnsettled = 2048

// turn is how long a lane with endless work keeps its place while others wait.
const turn = time.Second

// Subscriber is a Watermill subscriber whose topics are the types of events.
// It holds lanes, and delivers their events as order and limits allow.
type Subscriber struct {
	store  *outbox.Store
	config Config
	topics map[string]chan *message.Message

	// turns says that the fetch loop has something to do.
	turns   chan struct{}
	results chan *result

	mu    sync.Mutex
	lanes map[int64]*lane
	queue []*lane // lanes that may have something to start, in turn
	paces map[int64]*pace
	free  int
	// unsettled counts events from their start until their end is written.
	unsettled int
	slow      int // slots that slow lanes use, and events that wait
	// borrowed are the slots that lanes use above the starting pace; borrowers
	// are lanes that wait for one.
	borrowed  int
	borrowers []*lane
	// alone is the event that runs with nothing beside it; aloneWanted keeps
	// others from starting until it can.
	alone, aloneWanted bool
	draining           bool
	// hurried: lanes are given back as soon as there is nothing to do.
	hurried bool
	flow    flow
	// log is what the worker has seen; wanted are the lanes in which it saw
	// something, and that nobody was known to look after.
	log    *seenLog
	wanted map[outbox.Environment]bool
	// news: something may have been published since the last look. more: lanes may
	// be left to claim.
	news, more bool
	inFlight   sync.WaitGroup

	closeOnce sync.Once
}

type result struct {
	lane    *lane
	entry   *entry
	settled outbox.Settlement
}

// New returns a subscriber that delivers nothing until Run.
func New(store *outbox.Store, config Config) (*Subscriber, error) {
	switch {
	case config.Worker == "":
		return nil, errors.New("a worker needs a name")
	case config.Concurrency < 1 || config.LaneConcurrency < 1:
		return nil, fmt.Errorf("concurrency must be at least 1, of a worker (%d) and of an integration (%d)",
			config.Concurrency, config.LaneConcurrency)
	case config.Lease < time.Second:
		return nil, fmt.Errorf("a lease of %s is too short: use at least 1s", config.Lease)
	case config.Poll <= 0:
		return nil, errors.New("the poll interval must be above 0")
	}
	s := &Subscriber{
		store:   store,
		config:  config,
		topics:  make(map[string]chan *message.Message),
		turns:   make(chan struct{}, 1),
		results: make(chan *result, maxUnsettled+config.Concurrency),
		lanes:   make(map[int64]*lane),
		paces:   make(map[int64]*pace),
		free:    config.Concurrency,
		wanted:  make(map[outbox.Environment]bool),
		news:    true,
		more:    true,
	}
	for _, topic := range events.Types() {
		s.topics[topic] = make(chan *message.Message)
	}
	return s, nil
}

// Subscribe returns the messages of one type of event.
func (s *Subscriber) Subscribe(_ context.Context, topic string) (<-chan *message.Message, error) {
	messages, ok := s.topics[topic]
	if !ok {
		return nil, fmt.Errorf("no event is of type %q", topic)
	}
	return messages, nil
}

// Close ends the subscription's channels. Run must have returned.
func (s *Subscriber) Close() error {
	s.closeOnce.Do(func() {
		for _, topic := range s.topics {
			close(topic)
		}
	})
	return nil
}

// Wake makes the subscriber look for new events now.
func (s *Subscriber) Wake() {
	s.mu.Lock()
	s.news = true
	s.mu.Unlock()
	s.fetchSoon()
}

// Hurry makes the subscriber give lanes back as soon as there is nothing left
// to do, so that others see at once that it is idle.
func (s *Subscriber) Hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hurried = true
}

// fetchSoon makes the fetch loop take another turn.
func (s *Subscriber) fetchSoon() {
	select {
	case s.turns <- struct{}{}:
	default:
	}
}

// Run consumes until the context ends, then drains: nothing new starts, what
// runs may go on for the grace period and is then interrupted, leases are
// given back. It returns when all that is done.
func (s *Subscriber) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()

	var fetching, settling, renewing sync.WaitGroup
	settling.Go(func() { s.settleLoop(work) })
	renewing.Go(func() { s.renewLoop(work) })
	fetching.Go(func() { s.fetchLoop(ctx, work) })
	fetching.Go(func() { s.scanLoop(ctx) })

	<-ctx.Done()
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	fetching.Wait()
	s.waitForRunning()
	close(s.results)
	settling.Wait()
	err := s.releaseAll(work)
	stopWork()
	renewing.Wait()
	return err
}

// waitForRunning gives running events the grace period, then interrupts them.
func (s *Subscriber) waitForRunning() {
	finished := make(chan struct{})
	go func() {
		s.inFlight.Wait()
		close(finished)
	}()
	grace := time.NewTimer(s.config.Grace)
	defer grace.Stop()
	select {
	case <-finished:
		return
	case <-grace.C:
	}
	s.mu.Lock()
	for _, l := range s.lanes {
		l.cancel(context.Canceled)
	}
	s.mu.Unlock()
	<-finished
}

func (s *Subscriber) releaseAll(ctx context.Context) error {
	s.mu.Lock()
	var held []outbox.Holding
	for _, l := range s.lanes {
		if !l.lost {
			held = append(held, l.holding(s.log))
		}
		l.end(context.Canceled)
	}
	clear(s.lanes)
	s.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	began := time.Now()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := s.store.Release(ctx, held)
		if err == nil || !database.IsTransient(err) || time.Since(began) > s.config.usable() {
			return err
		}
		s.config.Logger.Warn("lanes could not be given back: trying again", "error", err, "in", pause)
		wait(ctx, pause)
	}
}

// paceOf keeps what is known of an integration's speed while its lane is held
// by others or by nobody.
func (s *Subscriber) paceOf(laneID int64) *pace {
	if len(s.paces) > 4*maxLanes {
		for id, p := range s.paces {
			if s.lanes[id] == nil && !p.slow {
				delete(s.paces, id)
			}
		}
	}
	p := s.paces[laneID]
	if p == nil {
		p = newPace(s.config.LaneConcurrency)
		s.paces[laneID] = p
	}
	return p
}

// laneList is a snapshot of the lanes held. The mutex is held.
func (s *Subscriber) laneList() []*lane {
	list := make([]*lane, 0, len(s.lanes))
	for _, l := range s.lanes {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *lane) int { return int(a.LaneID - b.LaneID) })
	return list
}
