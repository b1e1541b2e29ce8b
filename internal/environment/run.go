package environment

import (
	"context"
	"log/slog"
	"runtime"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
)

const (
	// grace is how long items may go on after a shutdown began.
	grace = 10 * time.Second
	// copiesAtOnce is how many copies a worker serves with all their slots.
	copiesAtOnce = 4
)

// Run takes snapshots and copies items until the context ends, and returns
// when what it began is recorded.
func (s *Store) Run(ctx context.Context, poll time.Duration, logger *slog.Logger) {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	r := &runner{
		store: s, logger: logger, free: copiesAtOnce * s.options.Concurrency,
		lanes: make(map[int64]*lane), finished: make(chan finished, copiesAtOnce*s.options.Concurrency),
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for look := true; ctx.Err() == nil; {
		if err := failure.Contain(func() error { return r.round(ctx, work, look) }); err != nil && ctx.Err() == nil {
			logger.Error("environments could not be copied: trying again", "error", err)
		}
		look = false
		select {
		case <-ctx.Done():
		case <-s.woken:
			look = true
		case <-tick.C:
			look = true
		case f := <-r.finished:
			r.finish(f)
		}
		r.finishAll()
	}
	r.drain(stop)
}

// runner shares one worker's slots among the environments that are copied to.
// One whose calls time out or are throttled shrinks to one item at a time and
// grows back on success; all such together use at most half of the slots.
type runner struct {
	store    *Store
	logger   *slog.Logger
	free     int
	running  int
	slow     int
	lanes    map[int64]*lane // by target
	due      []dueCopy       // which may have more items
	finished chan finished
}

// lane is one environment that is copied to.
type lane struct {
	limit   int
	running int
	slow    bool
}

type finished struct {
	target int64
	slow   bool
	err    error
}

const startingLimit = 2

// round does what is due, as far as slots are free. While items only take the
// slots of others, it needn't look what else is due.
func (r *runner) round(ctx, work context.Context, look bool) error {
	// A shutdown cuts off nothing that is short, nor leaves a lease behind.
	asking, cancel := context.WithTimeout(work, r.store.options.Lease)
	defer cancel()
	if look || len(r.due) == 0 {
		if err := r.store.Snapshots(ctx); err != nil {
			return err
		}
		if err := r.store.closeCopies(asking); err != nil {
			return err
		}
		var err error
		if r.due, err = r.store.dueCopies(asking); err != nil {
			return err
		}
	}
	var more []dueCopy
	for _, c := range r.due {
		left, err := r.begin(asking, work, c)
		if err != nil {
			return err
		}
		if left {
			more = append(more, c)
		}
	}
	r.due = more
	return nil
}

// begin starts items of a copy in its target's free slots. It tells whether
// more may be due.
func (r *runner) begin(ctx, work context.Context, c dueCopy) (more bool, err error) {
	l := r.lanes[c.TargetLane]
	if l == nil {
		l = &lane{limit: min(startingLimit, r.store.options.Concurrency)}
		r.lanes[c.TargetLane] = l
	}
	room := min(l.limit-l.running, r.free)
	if l.slow {
		room = min(room, copiesAtOnce*r.store.options.Concurrency/2-r.slow)
	}
	if room <= 0 {
		return true, nil
	}
	items, err := r.store.claim(ctx, c.Sequence, room)
	if err != nil {
		return false, err
	}
	for i := range items {
		it, slow := &items[i], l.slow
		l.running++
		r.running++
		r.free--
		if slow {
			r.slow++
		}
		go func() {
			// The lease of an item whose end could not be recorded lapses.
			err := failure.Contain(func() error { return r.store.copyItem(work, it, false) })
			r.finished <- finished{it.TargetLane, slow, err}
		}()
	}
	return len(items) == room, nil
}

func (r *runner) finish(f finished) {
	l := r.lanes[f.target]
	l.running--
	r.running--
	r.free++
	if f.slow {
		r.slow--
	}
	if f.err == nil {
		if l.limit = min(l.limit+1, r.store.options.Concurrency); l.limit > startingLimit {
			l.slow = false
		}
		return
	}
	failed := failure.Of(f.err)
	if failed.Slows() {
		l.limit, l.slow = 1, true
	}
	if failed.Class != failure.Interrupted {
		r.logger.Warn("a media could not be copied to its environment", "lane_id", f.target,
			"error_class", failed.Class, "error_code", failed.Code, "error", failed)
	}
}

// finishAll takes what else has finished, so that one round is enough for it:
// items that are recorded together finish together.
func (r *runner) finishAll() {
	runtime.Gosched()
	for {
		select {
		case f := <-r.finished:
			r.finish(f)
		default:
			return
		}
	}
}

// drain waits for what runs, and interrupts it when the grace period is over.
func (r *runner) drain(interrupt func()) {
	timer := time.AfterFunc(grace, interrupt)
	defer timer.Stop()
	for r.running > 0 {
		r.finish(<-r.finished)
	}
}

type dueCopy struct {
	Sequence   int64 `db:"sequence"`
	TargetLane int64 `db:"target_lane"`
}

// dueCopies lists active copies that have items to copy now and whose target
// isn't blocked or paused.
func (s *Store) dueCopies(ctx context.Context) ([]dueCopy, error) {
	var copies []dueCopy
	err := s.db.SelectContext(ctx, &copies, s.db.SQL(`
		SELECT c.sequence, c.target_lane FROM {copies} c JOIN {lanes} l ON l.lane_id = c.target_lane
		WHERE c.state = 'active' AND NOT l.held AND EXISTS (SELECT 1 FROM {copy_items} i
			WHERE i.copy_sequence = c.sequence AND i.state = 'owed' AND i.next_attempt_at <= {now}
			AND (i.leased_until IS NULL OR i.leased_until < {now}) AND NOT `+overtaken+`)
		ORDER BY c.sequence`))
	return copies, wrap("look for items to copy", err)
}
