package subscriber

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// modelled is what the naive model knows of an event: no index, no order, and
// each rule of the schedule's comment said by itself.
type modelled struct {
	sequence   int64
	resources  []string
	everything bool
	deletion   bool
	unchecked  bool
	running    bool
}

func (m *modelled) shares(other *modelled) bool {
	return slices.ContainsFunc(m.resources, func(r string) bool { return slices.Contains(other.resources, r) })
}

type model map[int64]*modelled

func (m model) startable(e *modelled) bool {
	if e.running || e.unchecked {
		return false
	}
	for _, o := range m {
		earlier := o.sequence < e.sequence
		switch {
		case o == e:
		case o.running && o.shares(e):
			return false
		case earlier && o.shares(e):
			return false
		case earlier && o.everything:
			return false // what comes after it waits for it
		case o.running && (o.deletion || e.deletion):
			return false // a deletion runs with nothing else
		case !o.running && o.deletion && !o.unchecked && m.firstBarrier(o):
			return false // it keeps what merely waits from starting
		}
	}
	return true
}

func (m model) firstBarrier(e *modelled) bool {
	for _, o := range m {
		if o.everything && !o.running && o.sequence < e.sequence {
			return false
		}
	}
	return true
}

func (m model) expected(n int) []int64 {
	list := []int64{}
	for _, e := range m {
		if m.startable(e) {
			list = append(list, e.sequence)
		}
	}
	slices.Sort(list)
	return list[:min(n, len(list))]
}

func (m model) some(t *rapid.T, label string, is func(*modelled) bool) *modelled {
	var list []int64
	for sequence, e := range m {
		if is(e) {
			list = append(list, sequence)
		}
	}
	if len(list) == 0 {
		t.Skip("none")
	}
	slices.Sort(list)
	return m[rapid.SampledFrom(list).Draw(t, label)]
}

// recheck marks what waits for an event that may have holds, and is forgotten.
func (m model) recheck(parked *modelled) {
	delete(m, parked.sequence)
	for _, e := range m {
		if e.sequence > parked.sequence && !e.running && (parked.everything || parked.shares(e)) {
			e.unchecked = true
		}
	}
}

func TestWhatMayStartIsWhatTheRulesSay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, m := newSchedule(), make(model)
		ended := make(map[int64]bool)

		add := func(t *rapid.T) {
			sequence := rapid.Int64Range(1, 60).Draw(t, "sequence")
			if ended[sequence] || m[sequence] != nil {
				if m[sequence] != nil {
					s.add(&outbox.Event{Sequence: sequence, Resources: `["m:other"]`}, false)
				}
				return
			}
			e := draw(t, sequence)
			m[sequence] = e
			s.add(eventOf(e), e.unchecked)
		}
		start := func(t *rapid.T) {
			n := rapid.IntRange(1, 5).Draw(t, "n")
			found := s.next(n)
			if diff := cmp.Diff(m.expected(n), entrySequences(found)); diff != "" {
				t.Fatalf("what may start (-model +schedule):\n%s", diff)
			}
			for _, e := range found {
				s.start(e)
				m[e.event.Sequence].running = true
			}
		}
		running := func(e *modelled) bool { return e.running }
		waiting := func(e *modelled) bool { return !e.running }

		t.Repeat(map[string]func(*rapid.T){
			"add":   add,
			"add 2": add,
			"add 3": add,
			"start": start,
			"finish": func(t *rapid.T) {
				e := m.some(t, "finished", running)
				s.finish(e.sequence, true, nil)
				delete(m, e.sequence)
				ended[e.sequence] = true
				if e.deletion {
					s.forget(0, e.sequence-1)
					for sequence := range m {
						if sequence < e.sequence {
							delete(m, sequence)
						}
					}
				}
			},
			"retry": func(t *rapid.T) {
				e := m.some(t, "retried", running)
				var behind []string
				if rapid.Bool().Draw(t, "behind another") {
					behind = []string{"m:1"}
				}
				s.finish(e.sequence, false, behind)
				e.resources = append(slices.Clone(e.resources), behind...)
				m.recheck(e)
			},
			"park": func(t *rapid.T) {
				e := m.some(t, "parked", waiting)
				s.leave(map[int64]bool{e.sequence: true})
				m.recheck(e)
			},
			"forget": func(t *rapid.T) {
				from := rapid.Int64Range(1, 60).Draw(t, "from")
				s.forget(from, maxSequence)
				maps.DeleteFunc(m, func(sequence int64, e *modelled) bool { return sequence >= from && !e.running })
			},
			"look up": func(*rapid.T) {
				_, doubt := s.unchecked()
				s.checked(doubt)
				for _, e := range m {
					e.unchecked = false
				}
			},
			"": func(t *rapid.T) { invariants(t, s, m) },
		})
	})
}

func draw(t *rapid.T, sequence int64) *modelled {
	e := &modelled{sequence: sequence, unchecked: rapid.IntRange(0, 4).Draw(t, "unchecked") == 0}
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		e.everything, e.resources = true, []string{outbox.Everything}
	case 1:
		e.everything, e.deletion, e.resources = true, true, []string{outbox.Everything}
	default:
		e.resources = []string{fmt.Sprintf("m:%d", rapid.IntRange(0, 4).Draw(t, "media"))}
		for range rapid.IntRange(0, 2).Draw(t, "names") {
			e.resources = append(e.resources, fmt.Sprintf("n:%d", rapid.IntRange(0, 4).Draw(t, "name")))
		}
	}
	return e
}

func eventOf(e *modelled) *outbox.Event {
	column, err := json.Marshal(e.resources)
	if err != nil {
		panic(err)
	}
	event := &outbox.Event{Sequence: e.sequence, Resources: string(column), Type: events.MediaDeletedType}
	switch {
	case e.deletion:
		event.Type = events.EnvironmentDeletedType
	case e.everything:
		event.Type = events.EnvironmentCreatedType
	}
	return event
}

func entrySequences(entries []*entry) []int64 {
	list := []int64{}
	for _, e := range entries {
		list = append(list, e.event.Sequence)
	}
	return list
}

func invariants(t *rapid.T, s *schedule, m model) {
	var lowest int64
	var running []*modelled
	for sequence, e := range m {
		if lowest == 0 || sequence < lowest {
			lowest = sequence
		}
		if e.running {
			running = append(running, e)
		}
	}
	if got := s.lowest(); got != lowest {
		t.Fatalf("lowest is %d, want %d", got, lowest)
	}
	if len(s.sequences) != len(m) || len(s.running) != len(running) || len(s.pending) != len(m)-len(running) {
		t.Fatalf("%d sequences, %d running, %d pending, want %d of which %d run",
			len(s.sequences), len(s.running), len(s.pending), len(m), len(running))
	}
	for i, e := range running {
		for _, o := range running[i+1:] {
			if e.shares(o) || e.deletion || o.deletion {
				t.Fatalf("%d and %d run at once", e.sequence, o.sequence)
			}
		}
	}
	if len(running) == 0 && len(s.busy) > 0 {
		t.Fatalf("busy although nothing runs: %v", s.busy)
	}
}

func TestADoubtThatCameDuringTheLookStays(t *testing.T) {
	t.Parallel()
	s := newSchedule()
	s.add(&outbox.Event{Sequence: 1, Resources: `["m:a"]`}, false)
	s.add(&outbox.Event{Sequence: 2, Resources: `["m:a"]`}, true)
	s.start(s.next(1)[0])
	_, doubt := s.unchecked() // the database is asked …
	s.finish(1, false, nil)   // … and knew nothing yet of what was parked here
	s.checked(doubt)
	if found := s.next(1); len(found) > 0 {
		t.Errorf("event %d overtook a parked one", found[0].event.Sequence)
	}
}

func TestAWindowIsStuckOnlyBehindALongEvent(t *testing.T) {
	t.Parallel()
	s := newSchedule()
	s.add(&outbox.Event{Sequence: 1, Resources: `["m:a"]`}, false)
	s.add(&outbox.Event{Sequence: 2, Resources: `["m:a"]`}, false)
	s.start(s.next(1)[0])
	began := s.running[1].started
	if running, waiting := s.stuck(began.Add(time.Millisecond)); len(running)+len(waiting) > 0 {
		t.Error("stuck at once")
	}
	running, waiting := s.stuck(began.Add(time.Second))
	if len(running) != 1 || len(waiting) != 1 {
		t.Errorf("stuck behind %d with %d, want 1 with 1", len(running), len(waiting))
	}
	s.add(&outbox.Event{Sequence: 3, Resources: `["m:b"]`}, false)
	if running, _ := s.stuck(began.Add(time.Second)); len(running) > 0 {
		t.Error("stuck although an event may start")
	}
}

func TestPaceShrinksToOneAndGrowsBack(t *testing.T) {
	t.Parallel()
	for most := 1; most <= 16; most++ {
		p := newPace(most)
		for range 20 {
			p.succeeded()
		}
		p.slowed()
		if p.limit != 1 || !p.slow {
			t.Errorf("of %d, %d may be in flight after a slow failure, slow=%t", most, p.limit, p.slow)
		}
		for range 20 {
			p.succeeded()
		}
		if p.limit != most || p.slow {
			t.Errorf("of %d, %d may be in flight after many successes, slow=%t", most, p.limit, p.slow)
		}
	}
}
