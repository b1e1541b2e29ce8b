package outbox

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// publishers is a database in which transactions write events to the outbox
// and commit when they like.
type publishers struct {
	last    int64
	open    map[string][]int64 // transaction → its sequences
	visible []int64
	names   int
}

// Whatever transactions do, a look finds every event that is visible and was
// not found: so it finds them in their order.
func TestNoLookPassesAnEventByThatIsStillToCommit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := &publishers{open: map[string][]int64{}}
		var w sweep
		found := map[int64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(*rapid.T) {
				p.names++
				p.open[fmt.Sprint("tx", p.names)] = nil
			},
			"insert": func(t *rapid.T) {
				if tx := p.any(t); tx != "" {
					p.last++
					p.open[tx] = append(p.open[tx], p.last)
				}
			},
			"commit": func(t *rapid.T) {
				if tx := p.any(t); tx != "" {
					p.visible = append(p.visible, p.open[tx]...)
					delete(p.open, tx)
				}
			},
			"roll back": func(t *rapid.T) {
				if tx := p.any(t); tx != "" {
					delete(p.open, tx)
				}
			},
			"look": func(t *rapid.T) {
				most := rapid.IntRange(1, 5).Draw(t, "most")
				after := w.passed
				open := p.transactions()
				if rapid.Bool().Draw(t, "a transaction ends meanwhile") {
					if tx := p.any(t); tx != "" {
						p.visible = append(p.visible, p.open[tx]...)
						delete(p.open, tx)
					}
				}
				p.look(t, &w, found, open, after, most)
			},
		})
	})
}

func (p *publishers) look(t *rapid.T, w *sweep, found map[int64]bool, open []string, after int64, most int) {
	slices.Sort(p.visible)
	var seen []int64
	for _, sequence := range p.visible {
		if found[sequence] {
			continue
		}
		if sequence <= after {
			t.Fatalf("event %d is visible, and not looked for: the look begins above %d", sequence, after)
		}
		if len(seen) < most {
			seen = append(seen, sequence)
		}
	}
	highest := int64(0)
	for _, sequence := range seen {
		found[sequence], highest = true, sequence
	}
	w.looked(open, highest, len(seen) < most)
}

func (p *publishers) transactions() []string {
	var names []string
	for name := range p.open {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (p *publishers) any(t *rapid.T) string {
	names := p.transactions()
	if len(names) == 0 {
		return ""
	}
	return rapid.SampledFrom(names).Draw(t, "transaction")
}
