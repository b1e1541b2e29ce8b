package outbox

import (
	"context"
	"time"
)

// assignLoop finds newly committed events, and takes what it can into memory:
// what ends soon is then written once, when it ends.
func (s *Subscriber) assignLoop(ctx, work context.Context) {
	s.loop(ctx, s.committed, "new events can't be assigned: trying again", func(announced bool) error {
		return s.assign(ctx, work, announced)
	})
}

// lostEvery is how often lost events are looked for, and lostShare how many times
// longer than it took it is waited for at least.
const (
	lostEvery = time.Second
	lostShare = 50
)

// findLostLoop looks for lost events, beside the looks for new ones, which must
// not wait for it.
func (s *Subscriber) findLostLoop(ctx context.Context) {
	var looked time.Time
	pause := lostEvery
	s.loop(ctx, nil, "lost events can't be looked for: trying again", func(bool) error {
		now := time.Now()
		if !due(&looked, now, pause) {
			return nil
		}
		asking, cancel := context.WithTimeout(ctx, s.config.Lease)
		defer cancel()
		found, err := s.store.FindLost(asking, s.carried)
		if found {
			s.lookSoon()
		}
		pause = max(lostEvery, lostShare*time.Since(now))
		return err
	})
}

// assignerBusy is how long a worker waits for another one's look to end.
const assignerBusy = 2 * time.Millisecond

// assign looks once. Of a few events that were announced, it may find and take
// all by one query.
func (s *Subscriber) assign(ctx, work context.Context, announced bool) error {
	now := time.Now()
	asking, cancel := context.WithTimeout(work, s.config.Lease)
	defer cancel()
	if err := s.writeSlow(asking, now); err != nil {
		return err
	}
	look, ok := s.look(now)
	if !ok {
		return nil
	}
	var done Assigned
	var few bool
	var err error
	if announced && s.pacing.peeks() {
		done, few, err = s.store.Peek(asking, look)
		s.pacing.peeked += len(done.Taken)
	}
	if !few && err == nil {
		s.pacing.peeked = 0
		done, err = s.store.Assign(asking, look)
	}
	s.looked(work, look, done, now, err == nil)
	if err == nil && done.Busy {
		wait(ctx, assignerBusy)
		s.lookSoon()
	}
	return err
}

// looked takes what a look found, or nothing where it failed.
func (s *Subscriber) looked(work context.Context, look Look, done Assigned, began time.Time, succeeded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lost := range done.Lost {
		if l := s.lanes[lost.LaneID]; l != nil && l.Token == lost.Token {
			s.drop(l)
		}
	}
	s.feed(work, done, began)
	for _, l := range s.lanes {
		if l.feeding && l.refill {
			s.fetchSoon()
		}
		l.feeding = false
	}
	s.dispatch()
	switch {
	case !succeeded:
		return
	case done.Busy:
		s.otherSeen = began
		return
	case done.Created && s.config.Created != nil:
		s.config.Created()
	}
	if len(done.Written) > 0 || len(done.Claimed) > 0 {
		s.fetchSoon()
	}
	s.pacing.looked(look, done, done.Held+s.idle(done.Written), began, time.Now())
	if done.More {
		s.lookSoon()
	}
}

// idle counts the events that were written into lanes that have enough of
// them in memory, or hang. The mutex is held.
func (s *Subscriber) idle(written []int64) int {
	n := 0
	for _, laneID := range written {
		if l := s.lanes[laneID]; l != nil && (l.pace.slow || len(l.schedule.pending) >= l.window()) {
			n++
		}
	}
	return n
}

// look says what to look for now, if anything.
func (s *Subscriber) look(now time.Time) (Look, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hungry := s.offered() < s.free
	plan, early := s.pacing.plan(now, s.pending(), hungry)
	if early > 0 {
		s.lookLater(early)
		return Look{}, false
	}
	for _, l := range s.lanes {
		l.doubtful = false
	}
	return Look{
		Worker: s.config.Worker, Lease: s.config.Lease, Carried: s.carried, Most: plan.most, Take: s.taker(plan.room),
		Ahead: plan.ahead, Enough: s.enough, Hungry: hungry,
	}, true
}

// enough tells of an environment that enough of its events are in memory, for
// a look past what there is no room for.
func (s *Subscriber) enough(serviceID, environmentID string) bool {
	laneID := s.store.laneOf(serviceID, environmentID)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[laneID]
	return l != nil && len(l.schedule.pending) >= smallestWindow
}

// takenWindows is how many times more events than it would read a lane may
// have in memory because they were taken: what there is no room for must be
// written, and what comes after it be read.
const takenWindows = 4

// taker decides, event by event, whether there is room for it: in all, and in
// the window of its lane.
func (s *Subscriber) taker(room int) func() func(*LaneState) bool {
	return func() func(*LaneState) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		t := &taking{subscriber: s, room: room, newLanes: maxLanes - len(s.lanes), took: make(map[int64]int)}
		return t.takes
	}
}

// taking is the room that is left while a look decides.
type taking struct {
	subscriber     *Subscriber
	room, newLanes int
	took           map[int64]int // by lane
}

func (t *taking) takes(found *LaneState) bool {
	t.subscriber.mu.Lock()
	defer t.subscriber.mu.Unlock()
	n := t.took[found.LaneID]
	switch l := t.subscriber.lanes[found.LaneID]; {
	case t.room <= 0:
		return false
	case l != nil:
		if !l.current(found) || n+len(l.schedule.pending) >= takenWindows*l.window() {
			return false
		}
		l.feeding = true
	case !found.Free() || n >= takenWindows*smallestWindow || n == 0 && t.newLanes <= 0:
		return false
	case n == 0:
		t.newLanes--
	}
	t.room--
	t.took[found.LaneID]++
	return true
}

// pending is how many events wait in memory, but for those of lanes that don't
// go on: who hangs takes no room from others. The mutex is held.
func (s *Subscriber) pending() int {
	n := 0
	for _, l := range s.lanes {
		if !l.status.Held && !l.leaving && !l.pace.slow {
			n += len(l.schedule.pending)
		}
	}
	return n
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

// carried lists the taken events above a sequence that are still in memory.
// Where the lease isn't good any more, another worker may have the lane: looks
// find all of it then, since nothing may be put there before what comes first.
func (s *Subscriber) carried(after int64) []int64 {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []int64{}
	for _, l := range s.lanes {
		if !l.alive(now) {
			continue
		}
		l.schedule.each(func(e *entry) {
			if e.event.Taken && !e.written && e.event.Sequence > after {
				list = append(list, e.event.Sequence)
			}
		})
	}
	return list
}

// feed puts taken events into their lanes. The mutex is held.
func (s *Subscriber) feed(work context.Context, done Assigned, asked time.Time) {
	for _, found := range done.Claimed {
		l := s.hold(work, found.Lane, asked)
		l.status, l.drainedWake, l.refill = found.status(), found.Wake, false
	}
	for _, e := range done.Taken {
		l := s.lanes[e.LaneID]
		if l == nil || l.Token != e.token {
			s.store.Refind(e.Sequence) // the lane was lost meanwhile
			continue
		}
		if e.Sequence < l.status.emptying() {
			s.store.Refind(e.Sequence) // a deletion began meanwhile
			continue
		}
		// Also where the lane is about to be given back: it is with all that was
		// taken, since the look may have written what comes after it.
		l.schedule.add(e, l.doubtful)
		l.emptied = asked
		if l.doubtful {
			s.fetchSoon()
		}
		s.enqueue(l)
	}
	for _, laneID := range done.Written {
		if l := s.lanes[laneID]; l != nil {
			l.refill = true
		}
	}
}

// writeAfter is how long a taken event stays in memory alone: most are over
// by then.
const writeAfter = time.Second / 5

// writeSlow assigns taken events that take long.
func (s *Subscriber) writeSlow(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	if now.Before(s.writeOn) {
		s.mu.Unlock()
		return nil
	}
	s.writeOn = now.Add(writeAfter / 2)
	var held []Holding
	var slow []*Event
	var entries []*entry
	for _, l := range s.laneList() {
		before := len(slow)
		l.schedule.each(func(e *entry) {
			if e.event.Taken && !e.written && !e.settling && now.Sub(e.added) > writeAfter {
				slow, entries = append(slow, e.event), append(entries, e)
			}
		})
		if len(slow) > before && !l.gone() {
			held = append(held, l.holding())
		}
	}
	s.mu.Unlock()
	if len(slow) == 0 {
		return nil
	}
	if err := s.store.Write(ctx, held, slow); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		e.written = true
	}
	return nil
}

// recently is how many events ended in the last tenth of a second.
func (s *Subscriber) recently() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pacing.flow.recently(time.Now())
}
