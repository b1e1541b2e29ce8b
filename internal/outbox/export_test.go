package outbox

import (
	"context"
	"slices"
)

// Environment names a lane.
type Environment = environment

// LongestName bounds the IDs of services and environments that have lanes.
const LongestName = longestName

// Unread bounds the payloads that a question about a media reads.
const Unread = unread

// WantAll says which lanes have something to read, as a worker does that has just
// begun.
func (s *Store) WantAll(ctx context.Context) error {
	if _, err := s.NoteCreations(ctx); err != nil {
		return err
	}
	found, err := s.Scan(ctx)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(e environment) bool { return !e.lane() })
	_, err = s.Want(ctx, "", found)
	return err
}

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

// Feed is what a worker has seen of the outbox.
type Feed struct {
	store *Store
	log   *seenLog
}

// Feed begins to look for what is published from now on.
func (s *Store) Feed(ctx context.Context) (*Feed, error) {
	log, err := s.begin(ctx)
	return &Feed{s, log}, err
}

// Look returns the events that became visible since the last look.
func (f *Feed) Look(ctx context.Context) ([]int64, error) {
	listed := len(f.log.gaps) > 0
	if listed {
		open, err := f.store.openTransactions(ctx)
		if err != nil {
			return nil, err
		}
		f.log.opened(open)
	}
	found, upTo, err := f.store.look(ctx, f.log, "w")
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

// Waits tells whether the worker has an event in memory that has not started.
func (s *Subscriber) Waits(sequence int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.laneList(), func(l *lane) bool {
		return slices.ContainsFunc(l.schedule.pending, func(e *entry) bool { return e.event.Sequence == sequence })
	})
}
