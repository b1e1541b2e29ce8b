package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

func readMetadata(data []byte) (message.Metadata, error) {
	metadata := message.Metadata{}
	if len(data) == 0 {
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

// fetchLoop brings events into memory: it assigns, claims lanes, reads on in
// those held, and gives back those that are drained.
func (s *Subscriber) fetchLoop(ctx, work context.Context) {
	tick := time.NewTicker(s.config.Poll)
	defer tick.Stop()
	var promoted, tookOver, looked, rotated time.Time
	pause := time.Duration(0)
	for ctx.Err() == nil {
		now := time.Now()
		r := round{
			promote:  due(&promoted, now, s.config.Poll),
			takeOver: due(&tookOver, now, min(time.Second, s.config.Lease/4)),
			statuses: due(&looked, now, s.config.Poll),
			rotate:   due(&rotated, now, turn),
		}
		if err := s.fetch(ctx, work, r); err != nil && ctx.Err() == nil {
			pause = min(2*pause+s.config.Poll, 5*time.Second)
			s.config.Logger.Error("the outbox can't be read: trying again", "error", err, "in", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		select {
		case <-ctx.Done():
		case <-s.kicked:
		case <-tick.C:
		}
	}
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

func (s *Subscriber) fetch(ctx, work context.Context, r round) error {
	if err := s.assign(ctx); err != nil {
		return err
	}
	if r.promote {
		lanes, more, err := s.store.Promote(ctx)
		if err != nil {
			return err
		}
		s.markRefill(lanes)
		if more {
			s.Wake()
		}
	}
	if err := s.claim(ctx, work, r.takeOver); err != nil {
		return err
	}
	if err := s.refill(ctx, r.statuses); err != nil {
		return err
	}
	if err := s.parkBlocked(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.dispatch()
	s.mu.Unlock()
	if r.rotate {
		if err := s.rotate(ctx); err != nil {
			return err
		}
	}
	return s.giveBack(ctx)
}

func (s *Subscriber) assign(ctx context.Context) error {
	done, err := s.store.Assign(ctx)
	if err != nil {
		return err
	}
	s.markRefill(done.Lanes)
	if done.Created && s.config.Created != nil {
		s.config.Created()
	}
	if done.More {
		s.Wake()
	}
	return nil
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

// claim leases more lanes while those held offer too little to start.
func (s *Subscriber) claim(ctx, work context.Context, takeOver bool) error {
	s.mu.Lock()
	offered := 0
	for _, l := range s.lanes {
		if !l.status.Held && !l.leaving && !l.pace.slow {
			offered += min(len(l.schedule.pending), max(l.pace.limit-len(l.schedule.running), 0))
		}
	}
	room := maxLanes - len(s.lanes)
	wanted := min(s.free+s.config.Concurrency-offered, room, max(s.config.Concurrency, 8))
	s.mu.Unlock()

	asked := time.Now()
	var leased []Lane
	if wanted > 0 {
		var err error
		if leased, err = s.store.Claim(ctx, s.config.Worker, wanted, s.config.Lease); err != nil {
			return err
		}
		if len(leased) == wanted {
			s.Wake()
		}
	}
	if takeOver && room > len(leased) {
		lapsed, err := s.store.TakeOver(ctx, s.config.Worker, room-len(leased), s.config.Lease)
		if err != nil {
			return err
		}
		if len(lapsed) > 0 {
			s.config.Logger.Warn("took over lanes whose worker let its lease lapse", "lanes", len(lapsed))
		}
		leased = append(leased, lapsed...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lane := range leased {
		if old := s.lanes[lane.LaneID]; old != nil {
			old.end(ErrLeaseLost)
		}
		s.lanes[lane.LaneID] = s.newLane(work, lane, asked)
	}
	return nil
}

// refill reads on in lanes that may have more. What a lane's status was
// before it was read decides whether the reading drained it.
func (s *Subscriber) refill(ctx context.Context, all bool) error {
	s.mu.Lock()
	var look []*lane
	for _, l := range s.laneList() {
		if all || l.refill && len(l.schedule.pending) < l.window()/2 {
			look = append(look, l)
		}
	}
	parks := make(map[*lane]int, len(look))
	ids := make([]int64, len(look))
	for i, l := range look {
		ids[i], parks[l] = l.LaneID, l.parks
	}
	s.mu.Unlock()
	if len(look) == 0 {
		return nil
	}
	statuses, err := s.store.Statuses(ctx, ids)
	if err != nil {
		return err
	}

	var readings []Reading
	reading := make(map[int64]*lane)
	limits := make(map[int64]int)
	s.mu.Lock()
	byID := make(map[int64]*lane, len(look))
	for _, l := range look {
		byID[l.LaneID] = l
	}
	for _, status := range statuses {
		l := byID[status.LaneID]
		if s.lanes[l.LaneID] != l || status.Token != l.Token {
			continue
		}
		if status.Wake != l.status.Wake || l.status.LaneID == 0 {
			l.refill = true
		}
		if l.status.Gate != nil && status.Gate == nil {
			s.enqueue(l)
		}
		l.status = status
		if limit := l.window() - len(l.schedule.pending); l.refill && limit > 0 && !status.Held && !l.leaving {
			readings = append(readings, Reading{LaneID: l.LaneID, After: l.cursor, Limit: limit})
			reading[l.LaneID], limits[l.LaneID] = l, limit
			l.refill = false
		}
	}
	s.mu.Unlock()
	if len(readings) == 0 {
		return nil
	}
	found, err := s.store.Read(ctx, readings)
	if err != nil {
		s.markRefill(ids)
		return err
	}
	s.take(found, reading, limits, parks)
	return nil
}

// take puts what was read into the lanes' schedules.
func (s *Subscriber) take(found []*Event, reading map[int64]*lane, limits map[int64]int, parks map[*lane]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := make(map[int64]int)
	for _, e := range found {
		l := reading[e.LaneID]
		count[e.LaneID]++
		l.schedule.add(e, l.status.Holds || l.parks != parks[l])
		l.cursor = max(l.cursor, e.Sequence)
	}
	for laneID, l := range reading {
		if count[laneID] < limits[laneID] {
			l.drainedWake = l.status.Wake
		} else {
			l.drainedWake, l.refill = notDrained, true
		}
		s.enqueue(l)
	}
}

// parkBlocked takes out of the windows what waits for parked events, and what
// fills a window while it waits for a long one.
func (s *Subscriber) parkBlocked(ctx context.Context) error {
	type job struct {
		lane             *lane
		holding          Holding
		running, waiting []*Event
	}
	var jobs []job
	now := time.Now()
	s.mu.Lock()
	for _, l := range s.lanes {
		if unchecked := l.schedule.unchecked(); len(unchecked) > 0 {
			jobs = append(jobs, job{lane: l, holding: l.holding(), waiting: unchecked})
			continue
		}
		if !l.refill || len(l.schedule.pending) < l.window()/2 {
			continue
		}
		if running, waiting := l.schedule.stuck(now); len(waiting) > 0 {
			for _, e := range running {
				e.Holding = true
			}
			jobs = append(jobs, job{l, l.holding(), running, waiting})
		}
	}
	s.mu.Unlock()

	for _, j := range jobs {
		parked, err := s.store.Park(ctx, j.holding, j.running, j.waiting)
		if err != nil {
			return err
		}
		s.mu.Lock()
		j.lane.schedule.checked(j.waiting)
		j.lane.schedule.park(parked)
		s.enqueue(j.lane)
		s.mu.Unlock()
		s.Wake()
	}
	return nil
}

// rotate gives back lanes that have had their turn while others wait.
func (s *Subscriber) rotate(ctx context.Context) error {
	s.mu.Lock()
	busy := s.free == 0
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
	now := time.Now()
	for _, l := range s.lanes {
		if now.Sub(l.since) > turn && len(l.schedule.pending) > 0 {
			l.leaving = true
		}
	}
	return nil
}

// giveBack releases lanes that are drained, held, lost or have had their turn.
func (s *Subscriber) giveBack(ctx context.Context) error {
	s.mu.Lock()
	var held []Holding
	for laneID, l := range s.lanes {
		if len(l.schedule.running) > 0 {
			continue
		}
		drained := l.drainedWake != notDrained && l.drainedWake == l.status.Wake && !l.refill &&
			len(l.schedule.pending) == 0
		lost := l.ctx.Err() != nil
		if !drained && !lost && !l.status.Held && !l.leaving {
			continue
		}
		delete(s.lanes, laneID)
		if !lost {
			held = append(held, l.holding())
		}
		l.end(errors.New("the lane was given back"))
	}
	s.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	return s.store.Release(ctx, held)
}
