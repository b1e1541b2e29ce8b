package subscriber

import (
	"slices"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// dispatch starts what may start. The mutex is held.
func (s *Subscriber) dispatch() {
	const perTurn = 4 // events that a lane starts before the next lane's turn
	for s.free > 0 && len(s.queue) > 0 && !s.draining && !s.alone && s.unsettled < maxUnsettled {
		l := s.queue[0]
		s.queue = s.queue[1:]
		l.queued = false
		room := min(l.pace.limit-l.active, s.free, perTurn)
		if l.pace.slow {
			room = min(room, s.config.slowMost()-s.slow)
		}
		if able := max(startingPace-l.active, 0) + s.config.borrowable() - s.borrowed; room > able {
			room = able
			s.awaitSlot(l)
		}
		if room <= 0 || l.status.Held || l.leaving || l.ctx.Err() != nil || s.lanes[l.LaneID] != l {
			continue // queued again when something of it ends
		}
		ready := l.schedule.next(room)
		for _, e := range ready {
			if !s.begin(l, e) {
				l.queued = true
				s.queue = slices.Insert(s.queue, 0, l)
				return
			}
		}
		if len(ready) == room {
			s.enqueue(l)
		}
	}
}

// begin starts an event, unless it or another must run alone.
func (s *Subscriber) begin(l *lane, e *entry) bool {
	alone := e.event.LapseCount >= outbox.AloneAfter
	if (alone || s.aloneWanted) && s.free < s.config.Concurrency {
		s.aloneWanted = s.aloneWanted || alone
		return false
	}
	s.alone, s.aloneWanted = alone, false
	l.schedule.start(e)
	s.free--
	s.unsettled++
	l.active++
	if l.pace.slow {
		s.slow++
	}
	e.slow = l.pace.slow
	if l.active > startingPace {
		s.borrowed++
	}
	d := &outbox.Delivery{
		Event:           e.event,
		MayHaveRun:      e.event.RecordedCount > 0 || e.event.Sequence <= l.status.TaintedTo,
		DeletedSequence: l.status.DeletedSequence,
		Token:           l.Token,
		Started:         e.started,
		Alive:           func() bool { return l.alive(time.Now()) },
		Slow:            func(slow bool) bool { return s.waits(e, slow) },
	}
	s.inFlight.Go(func() { s.deliver(l, e, d) })
	return true
}

// waits counts a running event as slow while it waits. Nothing tells before which
// lanes' events will, so that they may have all slots by then: those beyond what
// slow ones may use must end.
func (s *Subscriber) waits(e *entry, slow bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slow && !e.slow && !e.settling:
		if s.slow >= s.config.slowMost() {
			return false
		}
		e.slow, e.waiting = true, true
		s.slow++
	case !slow && e.waiting && !e.settling:
		e.slow, e.waiting = false, false
		s.slow--
		s.enqueueSlow()
		s.dispatch()
	}
	return true
}

// awaitSlot keeps a lane that could use a slot which others have borrowed.
func (s *Subscriber) awaitSlot(l *lane) {
	if !l.borrowing {
		l.borrowing = true
		s.borrowers = append(s.borrowers, l)
	}
}

// giveSlotBack lets lanes try again for a slot that one of them borrowed.
func (s *Subscriber) giveSlotBack() {
	s.borrowed--
	for _, l := range s.borrowers {
		l.borrowing = false
		if s.lanes[l.LaneID] == l {
			s.enqueue(l)
		}
	}
	s.borrowers = s.borrowers[:0]
}

func (s *Subscriber) enqueue(l *lane) {
	if !l.queued {
		l.queued = true
		s.queue = append(s.queue, l)
	}
}

// returned frees the slot of a handler, while the end of its event is still to
// be written: only what must come after that event waits for it.
func (s *Subscriber) returned(l *lane, e *entry, v *outbox.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.settling = true
	l.active--
	s.free++
	s.alone = false
	if l.active >= startingPace {
		s.giveSlotBack()
	}
	if e.slow {
		s.slow--
		s.enqueueSlow()
	}
	switch {
	case v.Failure != nil && v.Failure.Slows():
		l.pace.slowed()
	case v.Kind == outbox.Complete:
		l.pace.succeeded()
	case v.Blocks():
		l.status.Held = true
	}
	if s.lanes[l.LaneID] == l {
		s.enqueue(l)
	}
	s.dispatch()
}

// enqueueSlow lets slow lanes try for a slot that one of them gave up.
func (s *Subscriber) enqueueSlow() {
	for _, l := range s.lanes {
		if l.pace.slow {
			s.enqueue(l)
		}
	}
}
