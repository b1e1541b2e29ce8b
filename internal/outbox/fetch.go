package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

func readMetadata(data []byte) (message.Metadata, error) {
	metadata := message.Metadata{}
	if len(data) == 0 || string(data) == "{}" {
		return metadata, nil
	}
	if err := json.Unmarshal(data, &metadata); err != nil {
		return message.Metadata{}, fmt.Errorf("not an object of strings: %w", err)
	}
	return metadata, nil
}

// round is what one turn of the fetch loop does only now and then.
type round struct {
	promote, takeOver, statuses, rotate bool
}

// fetchLoop brings events into memory: it claims lanes, reads on in those held,
// and gives back those that are drained.
func (s *Subscriber) fetchLoop(ctx, work context.Context) {
	var promoted, tookOver, looked, rotated time.Time
	s.loop(ctx, s.fetching, "the outbox can't be read: trying again", func(bool) error {
		now := time.Now()
		return s.fetch(work, round{
			promote:  due(&promoted, now, s.config.Poll),
			takeOver: due(&tookOver, now, min(time.Second, s.config.Lease/4)),
			statuses: due(&looked, now, s.statusesEvery()),
			rotate:   due(&rotated, now, turn),
		})
	})
}

// loop takes turns until the context ends: when it is woken, which the turn is
// told, and where it wasn't for as long as a poll. After a failure it waits ever
// longer.
func (s *Subscriber) loop(ctx context.Context, wake <-chan struct{}, trouble string, turn func(woken bool) error) {
	tick := time.NewTicker(s.config.Poll)
	defer tick.Stop()
	pause := time.Duration(0)
	for woken := false; ctx.Err() == nil; {
		if err := turn(woken); err != nil && ctx.Err() == nil {
			pause = min(2*pause+s.config.Poll, 5*time.Second)
			s.config.Logger.Error(trouble, "error", err, "in", pause)
			wait(ctx, pause)
			woken = false
			continue
		}
		pause = 0
		select {
		case <-ctx.Done():
		case <-wake:
			woken = true
		case <-tick.C:
			woken = false
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
	if err := s.claim(work, r.takeOver); err != nil {
		return err
	}
	if err := s.refill(asking, r.statuses); err != nil {
		return err
	}
	if err := s.parkBlocked(asking); err != nil {
		return err
	}
	s.mu.Lock()
	s.dispatch()
	s.mu.Unlock()
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

// reading is a look for a lane's next events.
type reading struct {
	Reading
	lane *lane
	// fresh and requeued count what was found above and below the position.
	fresh, requeued int
}

// refill reads on in lanes that may have more. What a lane's status was
// before it was read decides whether the reading drained it.
func (s *Subscriber) refill(ctx context.Context, all bool) error {
	s.mu.Lock()
	look := make(map[int64]*lane)
	for _, l := range s.lanes {
		if all || l.wantsMore() {
			look[l.LaneID] = l
			l.ended = make(map[int64]bool)
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
			l.ended, l.reading = nil, false
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
	list := make([]Reading, 0, len(readings))
	for _, r := range readings {
		list = append(list, r.Reading)
	}
	found, err := s.store.Read(ctx, list)
	if err != nil {
		s.markRefill(slices.Collect(maps.Keys(readings)))
		return err
	}
	s.take(found, readings)
	return nil
}

// readings notes what changed about lanes, and says which are to be read.
func (s *Subscriber) readings(look map[int64]*lane, statuses []Status) map[int64]*reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make(map[int64]*reading)
	for _, status := range statuses {
		l := look[status.LaneID]
		if s.lanes[l.LaneID] != l || status.Token != l.Token {
			continue
		}
		before := l.status
		l.status = status
		l.status.DeletedSequence = max(before.DeletedSequence, status.DeletedSequence)
		if l.endedSince(before.Emptying) || l.endedSince(status.Emptying) {
			l.status.Emptying = before.Emptying
		}
		if before.LaneID == 0 || before.Wake != status.Wake {
			l.refill = true
		}
		if before.Held != status.Held || before.gate() != status.gate() {
			s.enqueue(l)
		}
		if before.gate() != status.gate() || before.SnapshotSequence != status.SnapshotSequence {
			l.schedule.copying()
		}
		limit := l.window() - len(l.schedule.pending)
		if l.schedule.stale() {
			limit = max(limit, 1)
		}
		if l.refill && limit > 0 && !status.Held && !l.leaving && !l.feeding {
			l.refill, l.reading = false, true
			list[l.LaneID] = &reading{lane: l, Reading: Reading{
				LaneID: l.LaneID, After: l.cursor, Limit: limit, Known: len(l.schedule.sequences),
			}}
		}
	}
	return list
}

// take puts what was read into the lanes' schedules. What ended meanwhile is
// out of date. Where not all requeued events were read, those above the reading
// position come after them.
func (s *Subscriber) take(found []*Event, readings map[int64]*reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range found {
		if r := readings[e.LaneID]; e.Sequence > r.After {
			r.fresh++
		} else {
			r.requeued++
		}
	}
	for _, e := range found {
		r := readings[e.LaneID]
		l := r.lane
		if e.Sequence > r.After && r.requeued >= r.Limit+r.Known {
			continue
		}
		l.cursor = max(l.cursor, e.Sequence)
		if _, ended := l.ended[e.Sequence]; ended {
			l.refill = true // it may have been read before or after that
			continue
		}
		if e.Sequence < l.status.emptying() {
			l.refill = true // read before that deletion began, or after its end
			continue
		}
		l.schedule.add(e, l.status.Holds || slices.Contains(slices.Collect(maps.Values(l.ended)), true))
	}
	for _, r := range readings {
		if r.fresh < r.Limit && r.requeued < r.Limit+r.Known {
			r.lane.drainedWake = r.lane.status.Wake
		} else {
			r.lane.drainedWake, r.lane.refill = notDrained, true
		}
		s.enqueue(r.lane)
	}
}

// parkBlocked takes out of the windows what waits for parked events, and what
// fills a window while it waits for a long one.
func (s *Subscriber) parkBlocked(ctx context.Context) error {
	type job struct {
		lane             *lane
		holding          Holding
		running, waiting []*Event
		doubt            int
	}
	var jobs []job
	now := time.Now()
	s.mu.Lock()
	for _, l := range s.lanes {
		j := job{lane: l, holding: l.holding()}
		more := l.refill || s.pacing.behind
		if j.waiting, j.doubt = l.schedule.unchecked(); len(j.waiting) == 0 && more && len(l.schedule.pending) >= l.window()/2 {
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
		parked, err := s.store.Park(ctx, j.holding, j.running, j.waiting)
		if errors.Is(err, ErrLeaseLost) {
			s.lose(j.lane)
			continue
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		j.lane.schedule.checked(j.doubt)
		j.lane.schedule.park(parked)
		j.lane.doubtful = j.lane.doubtful || len(parked) > 0 || len(j.running) > 0
		s.enqueue(j.lane)
		s.mu.Unlock()
		s.fetchSoon()
	}
	return nil
}
