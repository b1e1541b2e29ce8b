package outbox

import (
	"context"
	"errors"
	"time"
)

// claim leases more lanes while those held offer too little to start. It goes
// on when a shutdown begins: a lease that was granted must not be left behind.
func (s *Subscriber) claim(work context.Context, takeOver bool) error {
	s.mu.Lock()
	offered := 0
	if s.free == 0 {
		offered = s.offered() // where slots are free, what the lanes have can't start
	}
	room := maxLanes - len(s.lanes)
	wanted := min(s.free+s.config.Concurrency-offered, room, max(s.config.Concurrency, 8))
	s.mu.Unlock()

	asked := time.Now()
	asking, cancel := context.WithTimeout(work, s.config.Lease)
	defer cancel()
	if wanted > 0 {
		claimed, err := s.store.Claim(asking, s.config.Worker, wanted, s.config.Lease)
		if err != nil {
			return err
		}
		if len(claimed) == wanted {
			s.fetchSoon()
		}
		s.holdAll(work, claimed, asked)
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
		s.findLetGo()
	}
	s.holdAll(work, lapsed, asked)
	return nil
}

// findLetGo looks at once for what the former holder of a lane had taken, be it
// another worker or this one: none but a look from the beginning finds that,
// and nothing later may be put into the lane before.
func (s *Subscriber) findLetGo() {
	s.store.Refind(0)
	s.lookSoon()
}

func (s *Subscriber) holdAll(work context.Context, leased []Lane, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lane := range leased {
		s.hold(work, lane, asked)
	}
}

// hold begins to work on a leased lane. The mutex is held.
func (s *Subscriber) hold(work context.Context, leased Lane, asked time.Time) *lane {
	if old := s.lanes[leased.LaneID]; old != nil {
		old.end(ErrLeaseLost)
	}
	l := s.newLane(work, leased, asked)
	s.lanes[leased.LaneID] = l
	return l
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
// once, and costs no lease of its own. A worker that has no slot left doesn't
// keep from others what comes next.
const linger = time.Second

// giveBack releases lanes that are drained, held, lost or have had their turn.
func (s *Subscriber) giveBack(work context.Context) error {
	now := time.Now()
	s.mu.Lock()
	keep := linger
	if s.hurried && !s.pacing.behind && !s.busy() || len(s.lanes) > maxLanes-s.config.Concurrency ||
		s.free == 0 && now.Sub(s.otherSeen) < 10*linger {
		keep = 0
	}
	var held []Holding
	var taken []*Event
	lost := false
	for laneID, l := range s.lanes {
		if len(l.schedule.running) > 0 || l.feeding {
			l.emptied = now
			continue
		}
		drained := l.drainedWake != notDrained && l.drainedWake == l.status.Wake && !l.refill &&
			len(l.schedule.pending) == 0
		if !drained {
			l.emptied = now
		}
		if (!drained || now.Sub(l.emptied) < keep) && l.ctx.Err() == nil && !l.status.Held && !l.leaving {
			continue
		}
		delete(s.lanes, laneID)
		if l.lost {
			lost = true
		} else {
			held = append(held, l.holding())
			taken = append(taken, l.taken()...)
		}
		l.end(errors.New("the lane was given back"))
	}
	s.mu.Unlock()
	var err error
	if len(held) > 0 {
		work, cancel := context.WithTimeout(work, s.config.Lease)
		defer cancel()
		err = s.store.Release(work, held, taken)
	}
	if lost || err != nil {
		s.findLetGo()
	}
	return err
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

// lose drops a lane that another worker has taken over.
func (s *Subscriber) lose(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[l.LaneID] == l {
		s.drop(l)
	}
}

// drop is lose for a lane that is there. The mutex is held.
func (s *Subscriber) drop(l *lane) {
	delete(s.lanes, l.LaneID)
	l.end(ErrLeaseLost)
	s.findLetGo()
	s.config.Logger.Warn("lost the lease of a lane", "service_id", l.ServiceID, "environment_id", l.EnvironmentID)
}
