package subscriber

import (
	"context"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// renewLoop prolongs the leases of held lanes, and shows which of their
// events have been running for a while.
func (s *Subscriber) renewLoop(ctx context.Context) {
	every := min(s.config.Lease/4, time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var renewed time.Time
	marked := make(map[int64]bool)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Sub(renewed) >= s.config.Lease/4-every/2 {
			if err := s.renew(ctx); err != nil {
				s.config.Logger.Error("some leases could not be renewed: trying again", "error", err)
			} else {
				renewed = now
			}
		}
		if err := s.markRunning(ctx, marked, now); err != nil {
			s.config.Logger.Warn("running events could not be marked", "error", err)
		}
	}
}

func (s *Subscriber) renew(ctx context.Context) error {
	s.mu.Lock()
	var lanes []*lane
	var held []outbox.Holding
	for _, l := range s.laneList() {
		// What is given up must lapse, so that another worker takes it over.
		if !l.gone() {
			lanes = append(lanes, l)
			held = append(held, l.holding(s.log))
		}
	}
	s.mu.Unlock()
	if len(lanes) == 0 {
		return nil
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.config.Lease/4)
	defer cancel()
	kept, lost, err := s.store.Renew(ctx, held, s.config.Lease)
	for _, l := range lanes {
		switch {
		case kept[l.LaneID]:
			l.renewed(asked.Add(s.config.usable()))
		case lost[l.LaneID]:
			s.lose(l)
		}
	}
	return err
}

// markRunning writes the state of events that have run for longer than one
// round; shorter ones are over before anybody looks.
func (s *Subscriber) markRunning(ctx context.Context, marked map[int64]bool, now time.Time) error {
	running := make(map[int64]bool)
	var fresh []*outbox.Event
	var held []outbox.Holding
	s.mu.Lock()
	for _, l := range s.lanes {
		before := len(fresh)
		for sequence, e := range l.schedule.running {
			running[sequence] = true
			if !marked[sequence] && now.Sub(e.started) >= time.Second/2 {
				fresh = append(fresh, e.event)
			}
		}
		if len(fresh) > before {
			held = append(held, outbox.Holding{LaneID: l.LaneID, Token: l.Token})
		}
	}
	s.mu.Unlock()
	for sequence := range marked {
		if !running[sequence] {
			delete(marked, sequence)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := s.store.MarkRunning(ctx, held, fresh); err != nil {
		return err
	}
	for _, e := range fresh {
		marked[e.Sequence] = true
	}
	return nil
}
