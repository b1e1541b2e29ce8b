package subscriber

import "time"

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
	if p.limit = min(p.limit+1, p.most); p.limit >= min(startingPace+1, p.most) {
		p.slow = false
	}
}

func (p *pace) slowed() { p.limit, p.slow = 1, true }

// flow measures how fast events end.
type flow struct {
	since   time.Time
	n, rate int
}

// flowWindow is over which time events are counted.
const flowWindow = time.Second / 10

// recently is how many events ended in the last full window.
func (f *flow) recently(now time.Time) int {
	if passed := now.Sub(f.since); passed >= flowWindow {
		f.rate = int(int64(f.n) * int64(flowWindow) / int64(passed))
		f.since, f.n = now, 0
	}
	return max(f.rate, f.n)
}
