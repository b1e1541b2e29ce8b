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
	if announced && s.few {
		done.Taken, few, err = s.store.Peek(asking, look)
	}
	if !few && err == nil {
		done, err = s.store.Assign(asking, look)
	}
	s.looked(work, look, done, now, err == nil)
	if err == nil && done.Busy {
		wait(ctx, assignerBusy)
		s.lookSoon()
	}
	return err
}

// writeMost bounds a look after one that mostly wrote what lanes have no room
// for: others' events must not wait for that.
const writeMost = 200

// idleShare is how many times longer than it took, from its beginning, the look
// is waited for that goes on putting events into lanes that don't need them yet.
const idleShare = 10

// hungryPause is how long a worker waits that has looked ahead to the end, and
// has slots left that wait for what is published next.
const hungryPause = 10 * time.Millisecond

// looked takes what a look found, or nothing where it failed.
func (s *Subscriber) looked(work context.Context, look Look, done Assigned, began time.Time, succeeded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feed(work, done, began)
	for _, l := range s.lanes {
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
	took := time.Since(began)
	if look.Ahead {
		s.behind, s.few, s.atEnd = true, false, done.AtEnd
		s.newsOn = began.Add(2 * took)
		switch {
		case !look.Hungry:
			s.lookOn = began.Add(max(s.flow.pause(), passShare*took))
		case done.More:
			s.lookOn = began
		default:
			s.lookOn = began.Add(max(hungryPause, 2*took))
		}
		if done.More {
			s.lookSoon()
		}
		return
	}
	s.behind, s.left, s.writing = done.More, done.Left, len(done.Written) > len(done.Taken)
	if idle := done.Held + s.idle(done.Written); 2*idle > len(done.Written)+len(done.Taken) {
		s.assignOn = began.Add(idleShare * took)
	}
	s.few = !done.More && len(done.Taken)+len(done.Written)+done.Left < peekMost
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

// look says what to look for now. While the worker has as much as it can start
// soon, it looks ahead now and then all the same: what one customer publishes
// must not hide what another does.
func (s *Subscriber) look(now time.Time) (Look, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	budget := max(4*s.config.Concurrency, s.flow.recently(now)) // more would be written after all (writeSlow)
	room := budget - s.pending()
	look := Look{
		Worker: s.config.Worker, Lease: s.config.Lease, Carried: s.carried,
		Ahead: room < budget/4 || now.Before(s.assignOn), Enough: s.enough, Hungry: s.offered() < s.free,
	}
	if next := s.nextLook(room >= budget/4); look.Ahead && now.Before(next) {
		s.behind = true
		s.lookLater(next.Sub(now))
		return Look{}, false
	}
	s.news = false
	for _, l := range s.lanes {
		l.doubtful = false
	}
	if look.Ahead {
		room = 4 * s.config.Concurrency
		look.Most = room
	} else {
		look.Most = min(room, assignBatch) + min(s.left, 4*assignBatch)
	}
	if s.writing {
		look.Most = min(look.Most, writeMost)
	}
	look.Take = s.taker(room)
	return look, true
}

// nextLook is when to look ahead, or otherwise where there is room. What is
// announced is looked for sooner where that is all there is. The mutex is held.
func (s *Subscriber) nextLook(room bool) time.Time {
	next := s.lookOn
	if s.atEnd && s.news && s.newsOn.Before(next) {
		next = s.newsOn
	}
	if room && s.assignOn.Before(next) {
		next = s.assignOn
	}
	return next
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
func (s *Subscriber) taker(room int) func(*LaneState) bool {
	newLanes := maxLanes - len(s.lanes)
	took := make(map[int64]int)
	return func(found *LaneState) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := took[found.LaneID]
		switch l := s.lanes[found.LaneID]; {
		case room <= 0:
			return false
		case l != nil:
			if !l.current(found) || n+len(l.schedule.pending) >= takenWindows*l.window() {
				return false
			}
			l.feeding = true
		case !found.Free() || n >= takenWindows*smallestWindow || n == 0 && newLanes <= 0:
			return false
		case n == 0:
			newLanes--
		}
		room--
		took[found.LaneID]++
		return true
	}
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
func (s *Subscriber) carried(after int64) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []int64{}
	for _, l := range s.lanes {
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
		if l == nil || l.gone() || l.leaving {
			s.store.Refind(e.Sequence) // the lane was lost or given back meanwhile
			continue
		}
		l.schedule.add(e, l.doubtful)
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

// flow measures how fast events end.
type flow struct {
	since   time.Time
	n, rate int
}

// flowWindow is over which time events are counted.
const flowWindow = time.Second / 10

// recently is how many events ended in the last full window.
func (f *flow) recently(now time.Time) int {
	if passed := now.Sub(f.since); passed >= flowWindow {
		f.rate = int(int64(f.n) * int64(flowWindow) / int64(passed))
		f.since, f.n = now, 0
	}
	return max(f.rate, f.n)
}

// recently is how many events ended in the last tenth of a second.
func (s *Subscriber) recently() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flow.recently(time.Now())
}

// pause is how long a worker that has enough to do waits before it looks for
// more: the longer the faster its events end, since then looking costs them
// time, and they make room soon.
func (f *flow) pause() time.Duration {
	return flowWindow/2 + time.Duration(f.rate)*time.Second/8000
}
