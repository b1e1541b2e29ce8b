package subscriber

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// round is what one turn of the fetch loop does only now and then.
type round struct {
	look, promote, claim, takeOver, statuses, rotate bool
}

// fetchLoop brings events into memory: it looks for what is new, claims lanes, reads
// on in those held, and gives back those that are drained.
func (s *Subscriber) fetchLoop(ctx, work context.Context) {
	var polled, promoted, tookOver, looked, rotated time.Time
	tick := time.NewTicker(s.config.Poll)
	defer tick.Stop()
	pause := time.Duration(0)
	for ctx.Err() == nil {
		now := time.Now()
		poll := due(&polled, now, s.config.Poll)
		s.mu.Lock()
		r := round{look: s.news || poll, claim: s.more || poll}
		s.news = false
		s.mu.Unlock()
		r.promote = due(&promoted, now, s.config.Poll)
		r.takeOver = due(&tookOver, now, min(time.Second, s.config.Lease/4))
		r.statuses = due(&looked, now, s.statusesEvery())
		r.rotate = due(&rotated, now, turn)
		if err := s.fetch(work, r); err != nil && ctx.Err() == nil {
			s.Wake() // what this turn was for is still to be done
			pause = min(2*pause+s.config.Poll, 5*time.Second)
			s.config.Logger.Error("the outbox can't be read: trying again", "error", err, "in", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		select {
		case <-ctx.Done():
		case <-s.turns:
		case <-tick.C:
		}
		tick.Reset(s.config.Poll) // polling is for when nothing wakes it
	}
}

// statusesEvery keeps what is asked about held lanes a small part of the work
// however many they are.
func (s *Subscriber) statusesEvery() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.config.Poll, time.Duration(len(s.lanes))*time.Second/4000)
}

func due(last *time.Time, now time.Time, every time.Duration) bool {
	if now.Sub(*last) < every {
		return false
	}
	*last = now
	return true
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// fetch takes one turn. It ends it even when a shutdown begins: a query that is
// cut off costs a connection, and a cancel request that poolers don't all bear.
func (s *Subscriber) fetch(work context.Context, r round) error {
	asking, cancel := context.WithTimeout(work, s.config.Lease)
	defer cancel()
	if r.look {
		if err := s.feed(asking); err != nil {
			return err
		}
	}
	if r.promote {
		lanes, more, err := s.store.Promote(asking)
		if err != nil {
			return err
		}
		s.markRefill(lanes)
		if more {
			s.fetchSoon()
		}
	}
	if err := s.want(asking, &r); err != nil {
		return err
	}
	if r.claim || r.takeOver {
		if err := s.claim(work, r.takeOver); err != nil {
			return err
		}
	}
	if err := s.refill(asking, r.statuses); err != nil {
		return err
	}
	if err := s.parkBlocked(asking); err != nil {
		return err
	}
	s.mu.Lock()
	s.dispatch()
	again := s.news || s.more && s.lanesWanted() > 0
	s.mu.Unlock()
	if again {
		s.fetchSoon()
	}
	if r.rotate {
		if err := s.rotate(asking); err != nil {
			return err
		}
	}
	return s.giveBack(work)
}

func (s *Subscriber) markRefill(lanes []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, laneID := range lanes {
		if l := s.lanes[laneID]; l != nil {
			l.refill = true
		}
	}
}

// refill reads on in lanes that may have more.
func (s *Subscriber) refill(ctx context.Context, all bool) error {
	s.mu.Lock()
	look := make(map[int64]*lane)
	for _, l := range s.lanes {
		if all || l.wantsMore() {
			look[l.LaneID] = l
			l.ended, l.halted = make(map[int64]bool), false
		}
	}
	s.mu.Unlock()
	if len(look) == 0 {
		return nil
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range look {
			l.ended = nil
		}
	}()
	statuses, err := s.store.Statuses(ctx, slices.Sorted(maps.Keys(look)))
	if err != nil {
		return err
	}
	readings := s.readings(look, statuses)
	if len(readings) == 0 {
		return nil
	}
	found, err := s.store.Read(ctx, slices.Collect(maps.Values(readings)))
	if err != nil {
		s.markRefill(slices.Collect(maps.Keys(readings)))
		return err
	}
	// What a transaction publishes that was open when the worker began isn't seen by a
	// look first. If it has created an environment, what was read may come after that.
	if len(s.log.before) > 0 {
		if created, err := s.noteCreations(ctx); err != nil || created {
			s.markRefill(slices.Collect(maps.Keys(readings)))
			return err
		}
	}
	s.take(found, look, readings)
	return nil
}

// readings notes what changed about lanes, and says which are to be read.
func (s *Subscriber) readings(look map[int64]*lane, statuses []outbox.Status) map[int64]outbox.Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	budget := max(8*s.config.Concurrency, 2*s.flow.recently(time.Now())) - s.pending()
	list := make(map[int64]outbox.Reading)
	for _, status := range statuses {
		l := look[status.LaneID]
		if s.lanes[l.LaneID] != l || status.Token != l.Token {
			continue
		}
		before := l.status
		l.status = status
		l.status.DeletedSequence = max(before.DeletedSequence, status.DeletedSequence)
		if before.LaneID != 0 && before.Wake != status.Wake {
			l.refill = true
		}
		if before.Held != status.Held {
			s.enqueue(l)
		}
		room := l.window() - len(l.schedule.pending)
		room = min(room, max(smallestWindow-len(l.schedule.pending), budget), l.atOnce)
		if l.refill && room > 0 && !status.Held && !l.leaving {
			l.refill = false
			budget -= room
			list[l.LaneID] = outbox.Reading{
				LaneID: l.LaneID, After: l.cursor, UpTo: s.log.high, Limit: room + len(l.schedule.sequences),
				Known: len(l.schedule.sequences),
			}
		}
	}
	return list
}

// pending is how many events wait in memory, but for those of lanes that don't
// go on: a lane that hangs takes no room from others. The mutex is held.
func (s *Subscriber) pending() int {
	n := 0
	for _, l := range s.lanes {
		if !l.status.Held && !l.leaving && !l.pace.slow {
			n += len(l.schedule.pending)
		}
	}
	return n
}

// take puts what was read into the lanes' schedules. What ended meanwhile is
// out of date. What the worker has not seen yet is brought by the next look, with
// all that must come before it.
func (s *Subscriber) take(found []*outbox.Event, look map[int64]*lane, readings map[int64]outbox.Reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh, requeued, cut := make(map[int64]int), make(map[int64]int), make(map[int64]bool)
	for _, e := range found {
		if e.Sequence > readings[e.LaneID].After {
			fresh[e.LaneID]++
		} else {
			requeued[e.LaneID]++
		}
	}
	for _, e := range found {
		l, r := look[e.LaneID], readings[e.LaneID]
		isFresh := e.Sequence > r.After
		if isFresh && requeued[e.LaneID] >= r.Limit+r.Known {
			continue // requeued ones that were not read come before it
		}
		if cut[e.LaneID] = cut[e.LaneID] || e.Unread; cut[e.LaneID] {
			continue // it was left for the next reading, with all that come after it
		}
		if isFresh {
			l.cursor = max(l.cursor, e.Sequence)
		}
		switch {
		case l.ended[e.Sequence]:
			l.refill = true // it may have been read before or after that
		case s.log.knows(e.Sequence):
			l.schedule.add(e, l.status.Holds || l.halted)
		}
	}
	for laneID, r := range readings {
		l := look[laneID]
		if cut[laneID] || fresh[laneID] >= r.Limit || requeued[laneID] >= r.Limit+r.Known {
			l.refill = true
		}
		if cut[laneID] {
			l.atOnce = max(r.Limit/4, 1)
			s.fetchSoon()
		} else {
			l.atOnce = min(2*l.atOnce, mostAtOnce)
		}
		s.enqueue(l)
	}
}

// parkBlocked takes out of the windows what waits for events with holds, and what
// fills a window while it waits for a long one.
func (s *Subscriber) parkBlocked(ctx context.Context) error {
	type job struct {
		lane             *lane
		holding          outbox.Holding
		running, waiting []*outbox.Event
		doubt            int
	}
	var jobs []job
	now := time.Now()
	s.mu.Lock()
	for _, l := range s.lanes {
		j := job{lane: l, holding: l.holding(s.log)}
		if j.waiting, j.doubt = l.schedule.unchecked(); len(j.waiting) == 0 && l.refill && len(l.schedule.pending) >= l.window()/2 {
			j.doubt = 0
			j.running, j.waiting = l.schedule.stuck(now)
		}
		if len(j.waiting) == 0 {
			continue
		}
		// Any of them may end, or even start and end, before we are back; and
		// we may not learn that it was done.
		for _, e := range slices.Concat(j.running, j.waiting) {
			e.Holding = true
		}
		jobs = append(jobs, j)
	}
	s.mu.Unlock()

	for _, j := range jobs {
		left, err := s.store.Park(ctx, j.holding, j.running, j.waiting)
		if errors.Is(err, outbox.ErrLeaseLost) {
			s.lose(j.lane)
			continue
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		j.lane.schedule.checked(j.doubt)
		j.lane.schedule.leave(left)
		s.enqueue(j.lane)
		s.mu.Unlock()
		s.fetchSoon()
	}
	return nil
}
