package subscriber

import (
	"context"
	"slices"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// feed looks for what was published since the last look, and makes its lanes be
// read or claimed. It is the one way in which a worker learns of new events: an
// event is read only once it was seen, so that no event starts before one that was
// published earlier and is visible.
func (s *Subscriber) feed(ctx context.Context) error {
	s.mu.Lock()
	log := s.log
	s.mu.Unlock()
	if log == nil {
		return s.beginFeed(ctx)
	}
	listed := len(log.gaps) > 0
	if listed {
		open, err := s.store.OpenTransactions(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		log.opened(open)
		s.mu.Unlock()
	}
	found, upTo, err := s.store.Look(ctx, log.high, log.ranges(), s.config.Worker)
	if err != nil {
		return err
	}
	rescan := false
	if len(log.before) > 0 {
		open, err := s.store.OpenTransactions(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		rescan = log.openedAfter(open)
		s.mu.Unlock()
	}
	created := rescan
	for i := range found {
		created = created || found[i].Creates && found[i].Open
	}
	if created {
		if _, err := s.noteCreations(ctx); err != nil {
			return err
		}
	}
	if rescan {
		if err := s.scan(ctx); err != nil {
			return err
		}
	}
	nameless := s.admit(found, upTo, listed, rescan)
	return s.store.Bury(ctx, nameless)
}

// beginFeed makes the worker see what is published from now on. What is there
// already is found by the scan of all lanes.
func (s *Subscriber) beginFeed(ctx context.Context) error {
	high, open, err := s.store.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := s.noteCreations(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.news = &seenLog{high: high, before: open}, true
	return nil
}

// noteCreations notes new environments for their snapshots. What comes later in
// their sources, and has not started, is read again when those were taken. It tells
// whether there was one.
func (s *Subscriber) noteCreations(ctx context.Context) (found bool, err error) {
	gates, err := s.store.NoteCreations(ctx)
	if err != nil || len(gates) == 0 {
		return false, err
	}
	s.mu.Lock()
	for _, l := range s.lanes {
		if gate, gated := gates[l.Environment]; gated {
			l.schedule.forget(gate, maxSequence)
			l.rewind(gate)
		}
	}
	s.mu.Unlock()
	if s.config.Created != nil {
		s.config.Created()
	}
	return true, nil
}

// admit notes what a look found: lanes that the worker holds are read on, others
// are wanted. It returns the events that no lane can have. rewind makes all lanes
// be read again from where they were claimed.
func (s *Subscriber) admit(found []outbox.Seen, upTo int64, listed, rewind bool) (nameless []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(map[outbox.Environment]*lane, len(s.lanes))
	if len(found) > 0 || rewind {
		for _, l := range s.lanes {
			held[l.Environment] = l
			if rewind {
				l.rewind(l.ReadFrom)
			}
		}
	}
	sequences := make([]int64, len(found))
	for i := range found {
		f := &found[i]
		sequences[i] = f.Sequence
		switch l := held[f.Environment]; {
		case !f.Open:
		case !f.HasLane():
			nameless = append(nameless, f.Sequence)
		case l != nil:
			l.rewind(f.Sequence - 1)
		case f.Wanted:
			s.wanted[f.Environment] = true
		}
	}
	s.log.saw(sequences, upTo, listed)
	s.news = s.news || len(found) == outbox.LookMost
	return nameless
}

// want says which lanes have work that nobody looks after.
func (s *Subscriber) want(ctx context.Context, r *round) error {
	s.mu.Lock()
	lanes := make([]outbox.Environment, 0, len(s.wanted))
	for env := range s.wanted {
		lanes = append(lanes, env)
	}
	s.mu.Unlock()
	if len(lanes) == 0 {
		return nil
	}
	left, err := s.store.Want(ctx, s.config.Worker, lanes)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, env := range lanes {
		if !slices.Contains(left, env) {
			delete(s.wanted, env)
		}
	}
	r.claim = true
	return nil
}

const (
	// scanEvery is how often all lanes are looked through: a worker that died may
	// have been the only one that knew of an event, in a lane that it had just given
	// back. scanShare is how many times longer than it takes the next one is waited
	// for at least.
	scanEvery = 10 * time.Second
	scanShare = 50
)

// scanLoop looks through all lanes at the beginning, and then now and then.
func (s *Subscriber) scanLoop(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		if err := s.scan(ctx); err != nil && ctx.Err() == nil {
			s.config.Logger.Error("the lanes can't be looked through: trying again", "error", err)
		}
		wait(ctx, max(scanEvery, scanShare*time.Since(began)))
	}
}

// scan finds lanes that have something to be read. Events that no lane can have, and
// that were published before the worker began, are ended here.
func (s *Subscriber) scan(ctx context.Context) error {
	found, err := s.store.Scan(ctx)
	if err != nil {
		return err
	}
	for _, env := range found {
		if !env.HasLane() {
			if err := s.store.BuryIn(ctx, env); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	held := make(map[outbox.Environment]bool, len(s.lanes))
	for _, l := range s.lanes {
		held[l.Environment] = true
	}
	for _, env := range found {
		if env.HasLane() && !held[env] {
			s.wanted[env] = true
		}
	}
	s.mu.Unlock()
	if len(found) > 0 {
		s.fetchSoon()
	}
	return nil
}
