package outbox

// AssignBatch bounds one look.
const AssignBatch = assignBatch

// WalkBy makes looks ahead walk over so many events at a time.
func (s *Store) WalkBy(stretch int) { s.stretch = stretch }

// Batch bounds looks.
func (s *Store) Batch(most int) { s.batch = most }

// KnowsHeld tells whether the worker has read that a lane is held.
func (s *Subscriber) KnowsHeld(laneID int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[laneID] != nil && s.lanes[laneID].status.Held
}

// Passed is the sequence above which the next look begins.
func (s *Store) Passed() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sweep.passed
}
