package outbox

import (
	"slices"
	"sort"
	"time"

	"github.com/ownbucket/ownbucket/events"
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
// It is not safe for concurrent use.
type schedule struct {
	pending   []*entry // in sequence order
	running   map[int64]*entry
	busy      map[string]int // resources of running events
	sequences map[int64]bool // of both
}

type entry struct {
	event     *Event
	resources []string
	// unchecked: an earlier event with a common resource may be parked.
	unchecked bool
	// everything and deletion: the event concerns the whole environment.
	everything bool
	deletion   bool
	// slow: it took one of the slots that slow lanes may use.
	slow    bool
	started time.Time
	// settling: its end is being written; nothing may be put behind it any more.
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
func (s *schedule) add(event *Event, unchecked bool) {
	if s.sequences[event.Sequence] {
		return
	}
	s.sequences[event.Sequence] = true
	e := &entry{
		event:      event,
		resources:  resources(event.Resources),
		unchecked:  unchecked,
		everything: slices.Contains(resources(event.Resources), Everything),
		deletion:   event.Type == events.EnvironmentDeletedType,
	}
	at := sort.Search(len(s.pending), func(i int) bool { return s.pending[i].event.Sequence > event.Sequence })
	s.pending = slices.Insert(s.pending, at, e)
}

// next returns up to n events that may start, lowest sequence first, of those
// below the gate (0: no gate).
func (s *schedule) next(n int, gate int64) []*entry {
	var found []*entry
	waiting := make(map[string]bool)
	deletion := s.deletionAhead()
	for _, e := range s.pending {
		if len(found) >= n || gate > 0 && e.event.Sequence >= gate {
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
			if e.deletion && !e.unchecked {
				return e
			}
			return nil
		}
	}
	return nil
}

func (s *schedule) mayStart(e *entry, waiting map[string]bool) bool {
	if e.unchecked {
		return false
	}
	if e.deletion {
		return len(s.running) == 0
	}
	for _, r := range s.running {
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
	e.started = time.Now()
	for _, r := range e.resources {
		s.busy[r]++
	}
}

// finish forgets a running event. Where it was parked, those behind it must
// be looked up among the holds before they start.
func (s *schedule) finish(sequence int64, parked bool) {
	e := s.running[sequence]
	if e == nil {
		return
	}
	delete(s.running, sequence)
	delete(s.sequences, sequence)
	for _, r := range e.resources {
		if s.busy[r]--; s.busy[r] == 0 {
			delete(s.busy, r)
		}
	}
	if parked {
		s.recheck(e)
	}
}

// park forgets pending events that were parked.
func (s *schedule) park(parked map[int64]bool) {
	for _, e := range slices.Clone(s.pending) {
		if parked[e.event.Sequence] {
			s.drop(e)
			s.recheck(e)
		}
	}
}

// recheck marks what waits for an event that went into the database's holds.
func (s *schedule) recheck(parked *entry) {
	for _, e := range s.pending {
		if e.event.Sequence > parked.event.Sequence && parked.orders(e) {
			e.unchecked = true
		}
	}
}

func (e *entry) orders(later *entry) bool {
	if e.everything {
		return true
	}
	return slices.ContainsFunc(e.resources, func(r string) bool { return slices.Contains(later.resources, r) })
}

// supersede forgets what a completed deletion of that sequence ended.
func (s *schedule) supersede(deleted int64) {
	for _, e := range slices.Clone(s.pending) {
		if e.event.Sequence < deleted {
			s.drop(e)
		}
	}
}

func (s *schedule) drop(e *entry) {
	s.pending = slices.DeleteFunc(s.pending, func(p *entry) bool { return p == e })
	delete(s.sequences, e.event.Sequence)
}

// unchecked lists the events to look up among the holds.
func (s *schedule) unchecked() []*Event {
	var list []*Event
	for _, e := range s.pending {
		if e.unchecked {
			list = append(list, e.event)
		}
	}
	return list
}

// checked lets events start that were looked up and not parked.
func (s *schedule) checked(looked []*Event) {
	for _, event := range looked {
		for _, e := range s.pending {
			if e.event == event {
				e.unchecked = false
			}
		}
	}
}

// stuck returns the events that have been running for long, and all pending
// ones if none of them may start.
func (s *schedule) stuck(now time.Time) (running, waiting []*Event) {
	const long = time.Second / 4
	for _, e := range s.running {
		if now.Sub(e.started) > long && !e.settling {
			running = append(running, e.event)
		}
	}
	if len(running) == 0 || len(s.next(1, 0)) > 0 {
		return nil, nil
	}
	for _, e := range s.pending {
		waiting = append(waiting, e.event)
	}
	return running, waiting
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

// pace is how many events of an integration may be in flight: it starts low,
// grows with each success, and shrinks to one when calls time out or are
// throttled.
type pace struct {
	limit, most int
	// slow: it shrank and has not grown back to where it was.
	slow bool
}

const startingPace = 2

func newPace(most int) *pace { return &pace{limit: min(startingPace, most), most: most} }

func (p *pace) succeeded() {
	if p.limit = min(p.limit+1, p.most); p.limit > startingPace {
		p.slow = false
	}
}

func (p *pace) slowed() { p.limit, p.slow = 1, true }
