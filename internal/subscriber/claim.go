package subscriber

import (
	"context"
	"errors"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// claim leases more lanes while those held offer too little to start. It goes
// on when a shutdown begins: a lease that was granted must not be left behind.
func (s *Subscriber) claim(work context.Context, takeOver bool) error {
	s.mu.Lock()
	room := maxLanes - len(s.lanes)
	wanted := s.lanesWanted()
	s.mu.Unlock()

	asked := time.Now()
	asking, cancel := context.WithTimeout(work, s.config.Lease)
	defer cancel()
	if wanted > 0 {
		claimed, err := s.store.Claim(asking, s.config.Worker, wanted, s.config.Lease)
		if err != nil {
			return err
		}
		s.holdAll(work, claimed, asked)
		s.mu.Lock()
		s.more = len(claimed) == wanted
		s.mu.Unlock()
		room -= len(claimed)
	}
	if !takeOver || room <= 0 {
		return nil
	}
	lapsed, err := s.store.TakeOver(asking, s.config.Worker, room, s.config.Lease)
	if err != nil {
		return err
	}
	if len(lapsed) > 0 {
		s.config.Logger.Warn("took over lanes whose worker let its lease lapse", "lanes", len(lapsed))
	}
	s.holdAll(work, lapsed, asked)
	return nil
}

// claimMost bounds the lanes that are claimed at once.
const claimMost = 512

// lanesWanted is how many lanes more the worker could use: as many as it has slots
// beyond what the lanes held offer, or, where events end fast, as many as it ends
// events in a while. The mutex is held.
func (s *Subscriber) lanesWanted() int {
	wanted := max(s.free+s.config.Concurrency, s.flow.recently(time.Now())/2) - s.offered()
	return min(wanted, maxLanes-len(s.lanes), claimMost)
}

func (s *Subscriber) holdAll(work context.Context, leased []outbox.Lane, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lane := range leased {
		s.hold(work, lane, asked)
	}
}

// hold begins to work on a leased lane. The mutex is held.
func (s *Subscriber) hold(work context.Context, leased outbox.Lane, asked time.Time) {
	if old := s.lanes[leased.LaneID]; old != nil {
		old.end(outbox.ErrLeaseLost)
	}
	s.lanes[leased.LaneID] = s.newLane(work, leased, asked)
}

// rotate gives back lanes that have had their turn while others wait. A lane
// with a long event couldn't be given back soon, so its other events go on.
func (s *Subscriber) rotate(ctx context.Context) error {
	now := time.Now()
	s.mu.Lock()
	busy := s.free == 0 || len(s.lanes) >= maxLanes
	for _, l := range s.lanes {
		if l.leaving && l.schedule.longest(now) > turn {
			l.leaving, l.since = false, now
			s.enqueue(l)
		}
	}
	s.mu.Unlock()
	if !busy {
		return nil
	}
	waiting, err := s.store.Waiting(ctx)
	if err != nil || !waiting {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		if now.Sub(l.since) > turn && len(l.schedule.pending) > 0 && l.schedule.longest(now) <= turn {
			l.leaving = true
		}
	}
	return nil
}

// linger is how long a drained lane is kept: its next event then starts at
// once, and costs no lease of its own.
const linger = time.Second

// giveBack releases lanes that are drained, held, lost or have had their turn.
func (s *Subscriber) giveBack(work context.Context) error {
	now := time.Now()
	s.mu.Lock()
	keep := linger
	if s.hurried && !s.busy() || len(s.lanes) > maxLanes-s.config.Concurrency {
		keep = 0
	}
	var held []outbox.Holding
	for laneID, l := range s.lanes {
		if len(l.schedule.running) > 0 {
			l.emptied = now
			continue
		}
		drained := !l.refill && len(l.schedule.pending) == 0
		if !drained {
			l.emptied = now
		}
		if (!drained || now.Sub(l.emptied) < keep) && l.ctx.Err() == nil && !l.status.Held && !l.leaving {
			continue
		}
		delete(s.lanes, laneID)
		if !l.lost {
			held = append(held, l.holding(s.log))
		}
		l.end(errors.New("the lane was given back"))
	}
	// What is published now in one of them is seen by the next look.
	s.news = s.news || len(held) > 0
	s.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	work, cancel := context.WithTimeout(work, s.config.Lease)
	defer cancel()
	return s.store.Release(work, held)
}

// busy tells whether any lane has events in memory. The mutex is held.
func (s *Subscriber) busy() bool {
	for _, l := range s.lanes {
		if len(l.schedule.sequences) > 0 {
			return true
		}
	}
	return false
}

// offered is how many events in memory could start if slots were free. The
// mutex is held.
func (s *Subscriber) offered() int {
	own, borrowing := 0, 0
	for _, l := range s.lanes {
		if l.status.Held || l.leaving || l.pace.slow {
			continue
		}
		n := min(len(l.schedule.pending), max(l.pace.limit-l.active, 0))
		atStart := min(n, max(startingPace-l.active, 0))
		own += atStart
		borrowing += n - atStart
	}
	return own + min(borrowing, s.config.borrowable()-s.borrowed)
}

// lose drops a lane that another worker has taken over.
func (s *Subscriber) lose(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[l.LaneID] != l {
		return
	}
	delete(s.lanes, l.LaneID)
	l.end(outbox.ErrLeaseLost)
	s.config.Logger.Warn("lost the lease of a lane", "service_id", l.ServiceID, "environment_id", l.EnvironmentID)
}
