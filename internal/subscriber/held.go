package subscriber

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// lane is a lane that this worker holds. Its fields but the lease are guarded
// by the subscriber's mutex.
type lane struct {
	outbox.Lane
	ctx    context.Context
	cancel context.CancelCauseFunc

	schedule *schedule
	pace     *pace
	// cursor is the reading position: all events at or below that the worker has
	// seen were read, or are marked as requeued.
	cursor int64
	status outbox.Status
	// refill: there may be something to read.
	refill bool
	// atOnce is how many events are read at once. Where they were so large that some
	// were left, fewer are asked for: the database looks at all of them each time.
	atOnce int
	// ended has the events that ended since the lane's next events were asked for,
	// while they are being read: the answer may not have seen it. halted tells
	// that one of them didn't end, and has holds now.
	ended  map[int64]bool
	halted bool
	// active counts its handlers at work.
	active int
	// emptied is when it last had something to do.
	emptied time.Time
	// queued: the lane stands in the dispatch queue.
	queued bool
	// borrowing: it waits for a slot above the starting pace.
	borrowing bool
	// leaving: it is given back as soon as nothing runs.
	leaving bool
	// lost: the end of one of its events could not be written, so that it must
	// be taken over from where that event stands.
	lost  bool
	since time.Time

	lease struct {
		sync.Mutex
		until time.Time // local clock, reckoned from before the database was asked
		timer *time.Timer
	}
}

func (s *Subscriber) newLane(ctx context.Context, leased outbox.Lane, asked time.Time) *lane {
	l := &lane{
		Lane:     leased,
		schedule: newSchedule(),
		pace:     s.paceOf(leased.LaneID),
		cursor:   leased.ReadFrom,
		refill:   true,
		atOnce:   mostAtOnce,
		since:    asked,
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	l.lease.until = asked.Add(s.config.usable())
	l.lease.timer = time.AfterFunc(time.Until(l.lease.until), func() { l.cancel(outbox.ErrLeaseLost) })
	return l
}

// renewed moves the lease's end, unless it came already.
func (l *lane) renewed(until time.Time) {
	l.lease.Lock()
	defer l.lease.Unlock()
	if l.lease.timer.Stop() {
		l.lease.until = until
		l.lease.timer.Reset(time.Until(until))
	}
}

// alive tells whether the lease is good for another call. The wall clock
// counts too: the monotonic one stands still while a machine sleeps.
func (l *lane) alive(now time.Time) bool {
	l.lease.Lock()
	defer l.lease.Unlock()
	return now.Before(l.lease.until) && now.Round(0).Before(l.lease.until.Round(0)) && l.ctx.Err() == nil
}

// gone tells whether the lease can't be relied on any more.
func (l *lane) gone() bool { return l.lost || errors.Is(context.Cause(l.ctx), outbox.ErrLeaseLost) }

func (l *lane) end(cause error) {
	l.lease.timer.Stop()
	l.cancel(cause)
}

// wantsMore tells whether it is time to read on.
func (l *lane) wantsMore() bool {
	return l.refill && !l.leaving && len(l.schedule.pending) < l.window()/2
}

// rewind makes the lane be read again from there.
func (l *lane) rewind(to int64) {
	l.refill = true
	l.cursor = min(l.cursor, to)
}

// holding says how the lane is given back or renewed: nothing that this worker has
// not seen yet, or that is in its memory, may be passed by.
func (l *lane) holding(log *seenLog) outbox.Holding {
	h := outbox.Holding{LaneID: l.LaneID, Token: l.Token, ReadFrom: max(min(l.cursor, log.complete()), l.ReadFrom)}
	if lowest := l.schedule.lowest(); lowest > 0 {
		h.ReadFrom = min(h.ReadFrom, lowest-1)
	}
	return h
}

// window is how many events are kept in memory ahead of the pace.
func (l *lane) window() int { return min(max(8*l.pace.limit, smallestWindow), mostAtOnce) }

const (
	// mostAtOnce bounds the events that are read of a lane at once.
	mostAtOnce     = 512
	smallestWindow = 8 * startingPace
	maxSequence    = math.MaxInt64
)
