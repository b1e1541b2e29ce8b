package subscriber

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// publishers are transactions that are given sequences, and commit or not.
type publishers struct {
	last    int64
	open    map[string][]int64
	visible []int64
}

func (p *publishers) names() []string {
	names := []string{}
	for name := range p.open {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// look is a reading of the log as Store.look makes it: at most so many events.
func (p *publishers) look(l *seenLog, most int) (found []int64, upTo int64) {
	for _, sequence := range p.visible {
		if !l.knows(sequence) {
			found = append(found, sequence)
		}
	}
	slices.Sort(found)
	if len(found) >= most {
		return found[:most], found[most-1]
	}
	return found, math.MaxInt64
}

func TestLogSeesEveryEventOnceAndNoneBeforeThoseThatWereVisibleToIt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := &publishers{open: make(map[string][]int64)}
		l := &seenLog{}
		seenAt := make(map[int64]bool)
		// before has, for each event, the events that its publisher saw committed.
		before := make(map[int64][]int64)
		look := func(most int) {
			listed := len(l.gaps) > 0
			if listed {
				l.opened(p.names())
			}
			found, upTo := p.look(l, most)
			l.saw(found, upTo, listed)
			for _, sequence := range found {
				if seenAt[sequence] {
					t.Fatalf("%d was seen twice", sequence)
				}
				seenAt[sequence] = true
			}
			for _, sequence := range found {
				if !l.knows(sequence) {
					t.Fatalf("%d was found, and isn't known", sequence)
				}
				for _, earlier := range before[sequence] {
					if !seenAt[earlier] {
						t.Fatalf("%d was seen before %d, which its publisher had seen", sequence, earlier)
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				name := fmt.Sprint("tx", rapid.IntRange(1, 4).Draw(t, "transaction"))
				p.last++
				p.open[name] = append(p.open[name], p.last)
				before[p.last] = slices.Clone(p.visible)
			},
			"commit": func(t *rapid.T) {
				names := p.names()
				if len(names) == 0 {
					t.Skip("nothing is open")
				}
				name := rapid.SampledFrom(names).Draw(t, "transaction")
				p.visible = append(p.visible, p.open[name]...)
				delete(p.open, name)
			},
			"roll back": func(t *rapid.T) {
				names := p.names()
				if len(names) == 0 {
					t.Skip("nothing is open")
				}
				delete(p.open, rapid.SampledFrom(names).Draw(t, "transaction"))
			},
			"look": func(t *rapid.T) { look(rapid.IntRange(1, 6).Draw(t, "most")) },
		})
		p.visible = append(p.visible, slices.Concat(slices.Collect(mapValues(p.open))...)...)
		clear(p.open)
		for range len(p.visible) + 3 {
			look(3)
		}
		if len(seenAt) != len(p.visible) {
			t.Fatalf("%d of %d events were seen", len(seenAt), len(p.visible))
		}
		if len(l.gaps) > 0 {
			t.Fatalf("gaps are left though nothing is open: %v", l.gaps)
		}
	})
}

func mapValues(m map[string][]int64) func(yield func([]int64) bool) {
	return func(yield func([]int64) bool) {
		for _, value := range m {
			if !yield(value) {
				return
			}
		}
	}
}
