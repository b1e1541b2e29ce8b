package outbox

import "time"

// pacing decides when a worker looks for new events, and how. While it has room
// for more, its looks are ordinary ones, which begin with what was published
// first. While it has enough, or what comes first is of no use to it yet, it
// looks ahead now and then (see pass): what one customer publishes must not hide
// what another does.
//
// It is told the time, and is not safe for concurrent use.
type pacing struct {
	concurrency int
	flow        flow

	// behind: there may be events to assign that there was no room for.
	behind bool
	// few: the last look found but a few events. peeked is how many were found by
	// Peeks in a row. Only the loop that looks uses them.
	few    bool
	peeked int
	// left is how many events the last ordinary look left for other workers;
	// writing: it wrote more than it took; idle: mostly what lanes don't need yet.
	left          int
	writing, idle bool

	// ahead is when the next look ahead is due, hungry when it is while slots are
	// free, and announced when it is for events that were announced (news), where
	// the last one came to the end.
	ahead, hungry, announced time.Time
	atEnd, news              bool
	// filled is when the last ordinary look began, and fill what the next one will
	// take, where it put events into lanes that don't need them yet. between: a
	// look ahead has taken events since.
	filled  time.Time
	fill    time.Duration
	between bool
}

const (
	// writeMost bounds a look after one that mostly wrote what lanes have no room
	// for, and idleMost where they don't need it yet: others' events must not wait
	// for that.
	writeMost = 200
	idleMost  = 32
	// idleShare is how many times longer than it will take, from the beginning of
	// the last one, the look is waited for that goes on putting events into lanes
	// that don't need them yet; busyShare is it, up to busyMost, while others'
	// events come, which wait for it.
	idleShare = 10
	busyShare = 40
	busyMost  = time.Second
	// hungryPause is how long a worker waits that has looked ahead to the end, and
	// has slots left that wait for what is published next.
	hungryPause = 10 * time.Millisecond
	// peekedMost bounds what is found by Peeks in a row. Other looks move on from
	// where looks begin, so that what has ended isn't walked over again and again.
	peekedMost = 500
)

// peeks tells whether to try what was announced by a Peek.
func (p *pacing) peeks() bool { return p.few && p.peeked < peekedMost }

// plan is the kind of a look, for how many events it has room, and how many it
// finds at most.
type plan struct {
	ahead      bool
	room, most int
}

// plan tells what look is due, or how long to wait for one, with that many
// events in memory that wait for a slot; hungry tells that slots are free which
// those can't use.
func (p *pacing) plan(now time.Time, pending int, hungry bool) (plan, time.Duration) {
	budget := p.budget(now, hungry)
	room := budget - pending
	full := room < budget/4
	if full || now.Before(p.filling()) {
		if due := p.next(full, hungry); now.Before(due) {
			p.behind = true
			return plan{}, due.Sub(now)
		}
		p.news = false
		room = 4 * p.concurrency
		return plan{ahead: true, room: room, most: p.bounded(room)}, 0
	}
	p.news = false
	most := p.bounded(min(room, assignBatch) + min(p.left, 4*assignBatch))
	if p.idle {
		most = min(most, idleMost)
	}
	return plan{room: room, most: most}, 0
}

// budget is how many events are to wait in memory: as many as end in a tenth of a
// second, since what waits for much longer is written after all (writeSlow). More
// while slots are free, or nothing is known yet: they may have to wait for each
// other.
func (p *pacing) budget(now time.Time, hungry bool) int {
	recently := p.flow.recently(now)
	if hungry || recently == 0 {
		return max(4*p.concurrency, recently)
	}
	return max(p.concurrency, recently)
}

// next is when to look ahead, or otherwise where there is room. What is
// announced is looked for sooner where that is all there is.
func (p *pacing) next(full, hungry bool) time.Time {
	due := p.ahead
	if hungry {
		due = p.hungry
	}
	if p.atEnd && p.news && p.announced.Before(due) {
		due = p.announced
	}
	if filling := p.filling(); !full && filling.Before(due) {
		due = filling
	}
	return due
}

// filling is when to go on putting events into lanes that don't need them yet.
func (p *pacing) filling() time.Time {
	pause := idleShare * p.fill
	if p.between {
		pause = max(pause, min(busyShare*p.fill, busyMost))
	}
	return p.filled.Add(pause)
}

func (p *pacing) bounded(most int) int {
	if p.writing {
		return min(most, writeMost)
	}
	return most
}

// looked notes a look that succeeded. idle counts the events that it wrote
// which their lanes don't need yet.
func (p *pacing) looked(look Look, done Assigned, idle int, began, ended time.Time) {
	took := ended.Sub(began)
	if look.Ahead {
		p.behind, p.atEnd = true, done.AtEnd
		p.between = p.between || len(done.Taken) > 0
		p.few = done.AtEnd && !done.More && len(done.Taken)+len(done.Written) < peekMost
		p.announced = began.Add(2 * took)
		p.ahead = began.Add(max(p.flow.pause(), passShare*took))
		if p.hungry = began; !done.More {
			p.hungry = began.Add(max(hungryPause, 2*took))
		}
		return
	}
	written, taken := len(done.Written), len(done.Taken)
	p.behind, p.left, p.writing = done.More, done.Left, written > taken
	p.few = !done.More && taken+written+done.Left < peekMost
	found := written + taken
	p.filled, p.fill, p.between = began, 0, false
	if p.idle = 2*idle > found; p.idle {
		p.fill = took * time.Duration(min(found, idleMost)) / time.Duration(found)
	}
}

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

// pause is how long a worker that has enough to do waits before it looks for
// more: the longer the faster its events end, since then looking costs them
// time, and they make room soon.
func (f *flow) pause() time.Duration {
	return flowWindow/2 + time.Duration(f.rate)*time.Second/8000
}
