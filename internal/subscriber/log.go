package subscriber

import (
	"math"
	"slices"
	"sort"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// seenLog remembers which sequences of the outbox a worker has seen. A sequence is
// given before its transaction commits, so one may become visible after later
// ones: what was not there when later ones were seen is a gap. A gap closes when
// its events become visible, or when every transaction has ended that could have
// been given a sequence in it: those that had written to the outbox, and had not
// ended, when the gap was first seen.
//
// A publisher that must come after another has seen that one's commit. So of two
// such events, the log never has the later one without the earlier one.
//
// It is not safe for concurrent use.
type seenLog struct {
	high int64
	gaps []gap // sorted, apart from each other
	// before has the transactions that were open when the worker began: they may
	// publish anywhere up to where the log began.
	before []string
}

// gap is a range of sequences that were not visible yet.
type gap struct {
	outbox.Gap
	// open are the transactions that may still publish in it; nil until they were
	// listed for the first time.
	open []string
}

func newGap(from, to int64, open []string) gap { return gap{outbox.Gap{From: from, To: to}, open} }

// ranges are the gaps, to be looked into.
func (l *seenLog) ranges() []outbox.Gap {
	list := make([]outbox.Gap, len(l.gaps))
	for i, g := range l.gaps {
		list[i] = g.Gap
	}
	return list
}

// opened notes the transactions that are open, before the log is read.
func (l *seenLog) opened(open []string) {
	for i := range l.gaps {
		g := &l.gaps[i]
		if g.open == nil {
			g.open = append(make([]string, 0, len(open)), open...)
		} else {
			g.open = stillOpen(g.open, open)
		}
	}
}

// openedAfter notes the transactions that are open, after the log was read. It
// tells whether one has ended that was open when the worker began: what that one
// published may stand below what was read just now.
func (l *seenLog) openedAfter(open []string) (ended bool) {
	before := len(l.before)
	l.before = stillOpen(l.before, open)
	return len(l.before) < before
}

func stillOpen(known, open []string) []string {
	return slices.DeleteFunc(known, func(transaction string) bool { return !slices.Contains(open, transaction) })
}

// saw notes a reading of the log up to a sequence: it found these (sorted) above
// high and in the gaps, and nothing else. listed tells that the open transactions
// were listed just before. Then a gap that none of them may fill is closed: what
// could have been visible in it was found.
func (l *seenLog) saw(found []int64, upTo int64, listed bool) {
	var gaps []gap
	for _, g := range l.gaps {
		if g.From <= upTo && (!listed || g.open == nil || len(g.open) > 0) {
			gaps = append(gaps, without(newGap(g.From, min(g.To, upTo), g.open), found)...)
		}
		if upTo < g.To {
			gaps = append(gaps, newGap(max(g.From, upTo+1), g.To, slices.Clone(g.open)))
		}
	}
	from := l.high + 1
	for _, sequence := range found[above(found, l.high):] {
		if sequence > from {
			gaps = append(gaps, newGap(from, sequence-1, nil))
		}
		from = sequence + 1
	}
	l.gaps, l.high = gaps, from-1
}

// without is what is left of a gap in which those sequences were found.
func without(g gap, found []int64) (left []gap) {
	from := g.From
	for _, sequence := range found[above(found, g.From-1):] {
		if sequence > g.To {
			break
		}
		if sequence > from {
			left = append(left, newGap(from, sequence-1, slices.Clone(g.open)))
		}
		from = sequence + 1
	}
	if from <= g.To {
		left = append(left, newGap(from, g.To, g.open))
	}
	return left
}

// above is where in a sorted list the values above one begin.
func above(sorted []int64, value int64) int {
	return sort.Search(len(sorted), func(i int) bool { return sorted[i] > value })
}

// knows tells whether the worker has seen that sequence.
func (l *seenLog) knows(sequence int64) bool {
	if sequence > l.high {
		return false
	}
	at := sort.Search(len(l.gaps), func(i int) bool { return l.gaps[i].To >= sequence })
	return at == len(l.gaps) || sequence < l.gaps[at].From
}

// complete is the highest sequence at or below which nothing is still to become
// visible, as far as the log knows where it began.
func (l *seenLog) complete() int64 {
	if len(l.before) > 0 {
		return 0
	}
	if len(l.gaps) > 0 {
		return l.gaps[0].From - 1
	}
	return math.MaxInt64
}
