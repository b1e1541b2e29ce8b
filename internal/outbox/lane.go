package outbox

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrLeaseLost is the cause by which the work of a lane is cancelled whose
// lease couldn't be renewed.
var ErrLeaseLost = errors.New("the lane's lease was lost")

// lane is a lane that this worker holds. Its fields but the lease are guarded
// by the subscriber's mutex.
type lane struct {
	Lane
	ctx    context.Context
	cancel context.CancelCauseFunc

	schedule *schedule
	pace     *pace
	// cursor is the reading position: all events at or below were read, or
	// are marked as requeued.
	cursor int64
	status Status
	// refill: there may be something to read. drained: the last reading found
	// no more, as of wake drainedWake.
	refill      bool
	drainedWake int64
	// ended has the events that ended since the lane's status was asked for,
	// while it is being read, and whether they were parked: neither the status
	// nor the reading may have seen it.
	ended map[int64]bool
	// reading: its next events are being read; feeding: a look for new events is
	// under way that may bring it some, and nothing is read before: what that
	// look writes comes after what it takes.
	reading, feeding bool
	// doubtful: events of the lane were parked since that look began, which new
	// ones may have to wait for.
	doubtful bool
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

const notDrained = -1

func (s *Subscriber) newLane(ctx context.Context, leased Lane, asked time.Time) *lane {
	l := &lane{
		Lane:        leased,
		schedule:    newSchedule(),
		pace:        s.paceOf(leased.LaneID),
		cursor:      leased.ReadFrom,
		refill:      true,
		drainedWake: notDrained,
		since:       asked,
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	l.lease.until = asked.Add(s.config.usable())
	l.lease.timer = time.AfterFunc(time.Until(l.lease.until), func() { l.cancel(ErrLeaseLost) })
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

// endedSince tells whether an attempt of that event, if any, ended since the
// lane's status was asked for.
func (l *lane) endedSince(sequence *int64) bool {
	if sequence == nil {
		return false
	}
	_, ended := l.ended[*sequence]
	return ended
}

// gone tells whether the lease can't be relied on any more.
func (l *lane) gone() bool { return l.lost || errors.Is(context.Cause(l.ctx), ErrLeaseLost) }

func (l *lane) end(cause error) {
	l.lease.timer.Stop()
	l.cancel(cause)
}

// current tells whether all that waits in the lane is in memory, so that a new
// event may join it.
func (l *lane) current(found *LaneState) bool {
	return !l.refill && !l.reading && !l.leaving && !l.gone() && !l.status.Held && !l.schedule.stale() &&
		found.Current(l.Token, l.drainedWake)
}

// wantsMore tells whether it is time to read on.
func (l *lane) wantsMore() bool {
	return l.refill && (len(l.schedule.pending) < l.window()/2 || l.schedule.stale())
}

// taken lists the events in memory that may not be assigned in the database.
func (l *lane) taken() []*Event {
	var list []*Event
	l.schedule.each(func(e *entry) {
		if e.event.Taken {
			list = append(list, e.event)
		}
	})
	return list
}

// holding says how the lane is given back or renewed.
func (l *lane) holding() Holding {
	h := Holding{LaneID: l.LaneID, Token: l.Token, ReadFrom: l.cursor, SeenWake: notDrained}
	if lowest := l.schedule.lowest(); lowest > 0 {
		h.ReadFrom = min(h.ReadFrom, lowest-1)
	} else if !l.refill {
		h.SeenWake = l.drainedWake
	}
	return h
}

// window is how many events are kept in memory ahead of the pace.
func (l *lane) window() int { return min(max(8*l.pace.limit, smallestWindow), 512) }

const smallestWindow = 8 * startingPace
