package subscriber

import (
	"context"
	"slices"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// KnowsHeld tells whether the worker has read that a lane is held.
func (s *Subscriber) KnowsHeld(laneID int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[laneID] != nil && s.lanes[laneID].status.Held
}

// Knows tells whether the worker has seen an event.
func (s *Subscriber) Knows(sequence int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log != nil && s.log.knows(sequence)
}

// Waits tells whether the worker has an event in memory that has not started.
func (s *Subscriber) Waits(sequence int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.laneList(), func(l *lane) bool {
		return slices.ContainsFunc(l.schedule.pending, func(e *entry) bool { return e.event.Sequence == sequence })
	})
}

// Feed is what a worker has seen of the outbox.
type Feed struct {
	store *outbox.Store
	log   *seenLog
}

// Begin begins to look for what is published from now on.
func Begin(ctx context.Context, store *outbox.Store) (*Feed, error) {
	high, open, err := store.Begin(ctx)
	return &Feed{store, &seenLog{high: high, before: open}}, err
}

// Look returns the events that became visible since the last look.
func (f *Feed) Look(ctx context.Context) ([]int64, error) {
	listed := len(f.log.gaps) > 0
	if listed {
		open, err := f.store.OpenTransactions(ctx)
		if err != nil {
			return nil, err
		}
		f.log.opened(open)
	}
	found, upTo, err := f.store.Look(ctx, f.log.high, f.log.ranges(), "w")
	if err != nil {
		return nil, err
	}
	sequences := make([]int64, len(found))
	for i := range found {
		sequences[i] = found[i].Sequence
	}
	f.log.saw(sequences, upTo, listed)
	return sequences, nil
}

// Gaps is how many stretches of sequences are still to become visible.
func (f *Feed) Gaps() int { return len(f.log.gaps) }
