package subscriber

import (
	"slices"
	"sort"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// schedule decides in memory which events of one lane may start. Its rules:
//
//   - Events with a common resource run in sequence, one at a time.
//   - An event for everything waits for such events before it, and all that
//     come after it wait for it.
//   - The deletion of an environment also waits for what runs, and keeps what
//     merely waits from starting: the deletion will supersede it.
//   - An event that was not yet looked up among the holds may not start.
//
// An event that ran and didn't end leaves the schedule: it has holds, which those
// that come after it are looked up among before they start.
//
// It is not safe for concurrent use.
type schedule struct {
	pending   []*entry // in sequence order
	running   map[int64]*entry
	whole     []*entry       // of those that run, what concerns the whole environment
	busy      map[string]int // resources of running events
	sequences map[int64]bool // of both
	doubts    int            // counts the reasons to look an event up among the holds
}

type entry struct {
	event     *outbox.Event
	resources []string
	// doubt is the last reason for which an earlier event with a common
	// resource may be parked; 0 once the event was looked up since.
	doubt int
	// everything and deletion: the event concerns the whole environment.
	everything bool
	deletion   bool
	// slow: it took one of the slots that slow lanes may use. waiting: it takes one
	// since it was found slow while it ran.
	slow, waiting bool
	started       time.Time
	// settling: its handler has returned, and its end is being written; nothing
	// may be put behind it any more.
	settling bool
}

func newSchedule() *schedule {
	return &schedule{
		running:   make(map[int64]*entry),
		busy:      make(map[string]int),
		sequences: make(map[int64]bool),
	}
}

// add takes an event that was read, unless it is there already.
func (s *schedule) add(event *outbox.Event, unchecked bool) {
	if s.sequences[event.Sequence] {
		return
	}
	names := event.OrderedBy()
	e := &entry{
		event:      event,
		resources:  names,
		everything: slices.Contains(names, outbox.Everything),
		deletion:   event.Type == events.EnvironmentDeletedType,
	}
	if unchecked {
		s.distrust(e)
	}
	s.pending = slices.Insert(s.pending, s.position(event.Sequence), e)
	s.sequences[event.Sequence] = true
}

// position is where a sequence stands, or belongs, among the pending ones.
func (s *schedule) position(sequence int64) int {
	return sort.Search(len(s.pending), func(i int) bool { return s.pending[i].event.Sequence >= sequence })
}

func (e *entry) ready() bool { return e.doubt == 0 }

func (s *schedule) distrust(e *entry) {
	s.doubts++
	e.doubt = s.doubts
}

// next returns up to n events that may start, lowest sequence first.
func (s *schedule) next(n int) []*entry {
	var found []*entry
	waiting := make(map[string]bool)
	deletion := s.deletionAhead()
	for _, e := range s.pending {
		if len(found) >= n {
			break
		}
		if deletion != nil && e != deletion {
			continue
		}
		if s.mayStart(e, waiting) {
			found = append(found, e)
		}
		if e.everything {
			break
		}
		for _, r := range e.resources {
			waiting[r] = true
		}
	}
	return found
}

// deletionAhead is the deletion that is next among the events for everything.
func (s *schedule) deletionAhead() *entry {
	for _, e := range s.pending {
		if e.everything {
			if e.deletion && e.ready() {
				return e
			}
			return nil
		}
	}
	return nil
}

func (s *schedule) mayStart(e *entry, waiting map[string]bool) bool {
	if !e.ready() {
		return false
	}
	if e.deletion {
		return len(s.running) == 0
	}
	for _, r := range s.whole {
		if r.deletion || r.everything && (e.everything || r.event.Sequence < e.event.Sequence) {
			return false
		}
	}
	if e.everything {
		return true
	}
	for _, r := range e.resources {
		if waiting[r] || s.busy[r] > 0 {
			return false
		}
	}
	return true
}

func (s *schedule) start(e *entry) {
	s.drop(e)
	s.sequences[e.event.Sequence] = true
	s.running[e.event.Sequence] = e
	if e.everything {
		s.whole = append(s.whole, e)
	}
	e.started = time.Now()
	for _, r := range e.resources {
		s.busy[r]++
	}
}

// finish forgets a running event. Where it has not ended, those behind it must
// be looked up among the holds before they start. behind are further resources
// that order it from now on.
func (s *schedule) finish(sequence int64, ended bool, behind []string) {
	e := s.running[sequence]
	if e == nil {
		return
	}
	delete(s.running, sequence)
	delete(s.sequences, sequence)
	s.whole = slices.DeleteFunc(s.whole, func(w *entry) bool { return w == e })
	for _, r := range e.resources {
		if s.busy[r]--; s.busy[r] == 0 {
			delete(s.busy, r)
		}
	}
	if !ended {
		e.resources = append(e.resources, behind...)
		s.recheck(e)
	}
}

// leave forgets pending events that left the lane's window: they may have holds.
func (s *schedule) leave(left map[int64]bool) {
	for _, e := range slices.Clone(s.pending) {
		if left[e.event.Sequence] {
			s.drop(e)
			s.recheck(e)
		}
	}
}

// recheck marks what waits for an event that went out of memory and may have holds.
func (s *schedule) recheck(gone *entry) {
	for _, e := range s.pending {
		if e.event.Sequence > gone.event.Sequence && gone.orders(e) {
			s.distrust(e)
		}
	}
}

func (e *entry) orders(later *entry) bool {
	if e.everything {
		return true
	}
	return slices.ContainsFunc(e.resources, func(r string) bool { return slices.Contains(later.resources, r) })
}

// forget drops pending events of a range of sequences.
func (s *schedule) forget(from, to int64) {
	for _, e := range slices.Clone(s.pending) {
		if from <= e.event.Sequence && e.event.Sequence <= to {
			s.drop(e)
		}
	}
}

func (s *schedule) drop(e *entry) {
	if at := s.position(e.event.Sequence); at < len(s.pending) && s.pending[at] == e {
		s.pending = slices.Delete(s.pending, at, at+1)
	}
	delete(s.sequences, e.event.Sequence)
}

// unchecked lists the events to look up among the holds, and the last doubt
// that there is about one of them.
func (s *schedule) unchecked() (list []*outbox.Event, last int) {
	for _, e := range s.pending {
		if e.doubt != 0 {
			list = append(list, e.event)
		}
	}
	return list, s.doubts
}

// checked lets events start that were looked up and not parked. A doubt that
// came after the last one stays: the look may not have seen its reason.
func (s *schedule) checked(last int) {
	for _, e := range s.pending {
		if e.doubt <= last {
			e.doubt = 0
		}
	}
}

// stuck returns the events that have been running for long, and all pending
// ones if none of them may start.
func (s *schedule) stuck(now time.Time) (running, waiting []*outbox.Event) {
	const long = time.Second / 4
	for _, e := range s.running {
		if now.Sub(e.started) > long && !e.settling {
			running = append(running, e.event)
		}
	}
	if len(running) == 0 || len(s.next(1)) > 0 {
		return nil, nil
	}
	for _, e := range s.pending {
		waiting = append(waiting, e.event)
	}
	return running, waiting
}

// longest is for how long the first of the running events has been running.
func (s *schedule) longest(now time.Time) time.Duration {
	var longest time.Duration
	for _, e := range s.running {
		if e.settling {
			continue
		}
		longest = max(longest, now.Sub(e.started))
	}
	return longest
}

// lowest is the lowest sequence in memory, 0 if there is none.
func (s *schedule) lowest() int64 {
	var lowest int64
	if len(s.pending) > 0 {
		lowest = s.pending[0].event.Sequence
	}
	for sequence := range s.running {
		if lowest == 0 || sequence < lowest {
			lowest = sequence
		}
	}
	return lowest
}
