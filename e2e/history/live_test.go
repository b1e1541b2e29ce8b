package history_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/worker"
)

// patience bounds a history. An event that hasn't ended by then is stuck. Histories
// are short enough to end long before: an event waits for a copy for at most a
// minute, and then goes on without.
const patience = 8 * time.Minute

// live lets the history take place: all publish, operate and make trouble side
// by side. At the end nothing is paused, blocked or frozen any more, and
// nothing is left to do.
func (h *history) live(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for range h.workers {
		h.crew.hire()
	}
	var publishing, operating, troubling sync.WaitGroup
	begin := func(group *sync.WaitGroup, run func() error) {
		group.Go(func() {
			if err := run(); err != nil {
				fail(err)
			}
		})
	}
	published, settled := make(chan struct{}), make(chan struct{})
	for _, s := range h.services {
		for range len(s.shelves) - 1 {
			p := &publisher{author: author{s, h.random()}}
			begin(&publishing, func() error { return p.run(ctx) })
		}
		o := &operator{author: author{s, h.random()}}
		begin(&operating, func() error { return o.run(ctx, published) })
	}
	troubles := &troubles{h, h.random()}
	begin(&troubling, func() error { return troubles.run(ctx, published) })
	begin(&troubling, func() error { return h.countUnfinished(ctx, settled) })
	snapshots := &slowSnapshots{h, h.random()}
	begin(&troubling, func() error { return snapshots.run(ctx, settled) })
	publishing.Wait()
	h.note("all is published")
	close(published)
	operating.Wait()
	h.note("all that died is settled")
	close(settled)
	troubling.Wait()
	h.drain(ctx)
	if err := context.Cause(ctx); err != nil {
		h.fault("the history could not go on: %v", err)
	}
}

// drain waits until the workers have done all, dismisses them, and lets arrive
// what was on its way. Then there is nothing left to do for another worker.
func (h *history) drain(ctx context.Context) {
	h.crew.steady()
	for ctx.Err() == nil {
		if n, err := h.unfinishedNow(ctx); n == 0 || err != nil {
			break
		}
		h.rest(ctx, tick)
	}
	h.note("no event is left")
	h.crew.dismiss()
	w, err := worker.New(ctx, h.stage.Config)
	if err == nil {
		err = w.RunUntilIdle(ctx, patience)
	}
	if err != nil {
		h.fault("the installation could not be drained: %v", err)
	}
	h.note("all is drained")
}

// countUnfinished keeps count of the events that are yet to end.
func (h *history) countUnfinished(ctx context.Context, settled <-chan struct{}) error {
	for {
		began := time.Now()
		n, err := h.unfinishedNow(ctx)
		if err != nil {
			return err
		}
		h.unfinished.Store(n)
		select {
		case <-settled:
			return nil
		default:
		}
		// Counting reads the whole outbox: the workers need the database, too.
		if h.rest(ctx, max(tick, 20*time.Since(began))); ctx.Err() != nil {
			return nil //nolint:nilerr // the count ends with the history
		}
	}
}

func (h *history) unfinishedNow(ctx context.Context) (int64, error) {
	stats, err := h.outbox.Stats(ctx)
	n := stats.Events
	return n[outbox.Available] + n[outbox.Running] + n[outbox.Retryable] + n[outbox.Held], err
}

// rest waits for a while, or until all ends.
func (h *history) rest(ctx context.Context, long time.Duration) {
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// troubles befall workers and their calls.
type troubles struct {
	*history
	r *rand.Rand
}

// afterwards is how long trouble goes on when all is published.
const afterwards = 8 * time.Second

// run makes trouble while there is much to do.
func (x *troubles) run(ctx context.Context, published <-chan struct{}) error {
	defer x.crew.disarm()
	var end time.Time
	for ctx.Err() == nil && (end.IsZero() || time.Now().Before(end)) {
		select {
		case <-published:
			published, end = nil, time.Now().Add(afterwards)
		default:
		}
		x.crew.set(trap{
			mishap: pick(x.r, []mishap{killed, killedBefore, killedAfter, killedBefore, killedAfter, frozenBefore, frozenAfter}),
			skip:   50 + x.r.IntN(600),
		})
		for range x.r.IntN(3) {
			rule := x.rule()
			injected := x.stage.AWS.Inject(rule)
			x.rest(ctx, time.Duration(100+x.r.IntN(500))*time.Millisecond)
			injected.Remove() // calls that hang end
		}
		x.rest(ctx, time.Duration(100+x.r.IntN(900))*time.Millisecond)
	}
	return nil
}

// slowSnapshots are kept from being taken for a while: the events that come after
// them must wait.
type slowSnapshots struct {
	*history
	r *rand.Rand
}

func (x *slowSnapshots) run(ctx context.Context, settled <-chan struct{}) error {
	db := x.stage.DB
	if db.Dialect == database.SQLite {
		return nil // its one writer would keep everybody waiting
	}
	for ctx.Err() == nil {
		select {
		case <-settled:
			return nil
		default:
		}
		if err := db.Tx(ctx, func(tx *sqlx.Tx) error {
			var due []int64
			err := tx.SelectContext(ctx, &due, db.SQL(`
				SELECT sequence FROM {copies} WHERE state = 'pending' ORDER BY sequence LIMIT 1 FOR UPDATE SKIP LOCKED`))
			if len(due) > 0 {
				x.rest(ctx, time.Duration(x.r.IntN(300))*time.Millisecond)
			}
			return err
		}); err != nil && ctx.Err() == nil {
			return err
		}
		x.rest(ctx, 2*time.Millisecond)
	}
	return nil
}

// rule makes some calls fail, with or without their effect.
func (x *troubles) rule() awslocal.Rule {
	rule := awslocal.Rule{
		API: pick(x.r, []string{"s3:PutObject", "s3:CopyObject", "s3:DeleteObject", "s3:DeleteObjects",
			"s3:HeadObject", "s3:ListObjectsV2", "sts:AssumeRole"}),
		AfterEffect: x.r.IntN(2) == 0,
		Skip:        x.r.IntN(5),
		Times:       1 + x.r.IntN(4),
	}
	switch x.r.IntN(9) {
	case 0, 5, 6:
		rule.Status, rule.Code = 500, "InternalError"
	case 1: // the SDK doesn't try again by itself
		rule.Status, rule.Code = 409, "OperationAborted"
	case 2:
		rule.Status, rule.Code = 503, "SlowDown"
	case 3:
		rule.Hang = true
	default:
		rule.Reset = true
	}
	return rule
}
