package environment

import (
	"context"
	"errors"
	"time"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// leasing is what every lease of an item does. A lease that lapsed, rather
// than having been given back, was a dead worker's: it may have written.
const leasing = `UPDATE {copy_items} SET lease_token = lease_token + 1, leased_until = {now} + ?,
	may_have_written = (may_have_written OR leased_until IS NOT NULL)`

// overtaken holds for an item that an unfinished event went past.
const overtaken = `EXISTS (SELECT 1 FROM {outbox} e WHERE e.sequence = overtaken_by AND ` + outbox.Unfinished + `)`

var errLeaseLost = errors.New("the lease of a copy's item was lost")

// claim leases up to n items of a copy that are due, if its target takes any.
func (s *Store) claim(ctx context.Context, copySequence int64, n int) ([]item, error) {
	asked := time.Now()
	var items []item
	// MATERIALIZED: a join may otherwise run the CTE, and lock, again.
	err := s.db.SelectContext(ctx, &items, s.db.SQL(`
		WITH due AS MATERIALIZED (
			SELECT copy_sequence, media_id FROM {copy_items}
			WHERE copy_sequence = ? AND state = 'owed' AND next_attempt_at <= {now}
			AND (leased_until IS NULL OR leased_until < {now}) AND NOT `+overtaken+`
			AND EXISTS (SELECT 1 FROM {copies} c JOIN {lanes} l ON l.lane_id = c.target_lane
				WHERE c.sequence = ? AND c.state = 'active' AND NOT l.held)
			ORDER BY next_attempt_at LIMIT ? {skip_locked})
		`+leasing+` WHERE (copy_sequence, media_id) IN (SELECT copy_sequence, media_id FROM due)
		RETURNING `+itemColumns), copySequence, copySequence, n, s.options.Lease.Microseconds())
	for i := range items {
		items[i].asked = asked
	}
	return items, wrap("lease items of a copy", err)
}

// lease takes an item that nobody else copies, as it now is. It tells whether
// it got it.
func (s *Store) lease(ctx context.Context, it *item) (bool, error) {
	asked := time.Now()
	var leased []item
	err := s.db.SelectContext(ctx, &leased, s.db.SQL(leasing+`
		WHERE copy_sequence = ? AND media_id = ? AND state = 'owed' AND (leased_until IS NULL OR leased_until < {now})
		AND NOT `+overtaken+` RETURNING `+itemColumns), s.options.Lease.Microseconds(), it.CopySequence, it.MediaID)
	if err != nil || len(leased) == 0 {
		return false, wrap("lease an item of a copy", err)
	}
	*it = leased[0]
	it.asked = asked
	return true, nil
}

// keepLease renews the item's lease until stopped, and cancels the context
// when it can't be relied on any more.
func (s *Store) keepLease(ctx context.Context, it *item) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	usable := s.options.Lease * 4 / 5
	deadline := time.AfterFunc(time.Until(it.asked.Add(usable)), func() { cancel(errLeaseLost) })
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(s.options.Lease / 4)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			asked := time.Now()
			mine, err := failure.ContainResult(func() (bool, error) { return s.renew(ctx, it) })
			switch {
			case err != nil: // the deadline decides
			case !mine:
				cancel(errLeaseLost)
				return
			case deadline.Stop():
				deadline.Reset(time.Until(asked.Add(usable)))
			}
		}
	}()
	guarded := bucket.WithGuard(ctx, func() error {
		if ctx.Err() != nil {
			return failure.New(failure.Interrupted, failure.Canceled, "copy media %q: %w", it.MediaID, context.Cause(ctx))
		}
		return nil
	})
	return guarded, func() {
		deadline.Stop()
		cancel(nil)
		<-finished
	}
}

func (s *Store) renew(ctx context.Context, it *item) (bool, error) {
	result, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copy_items} SET leased_until = {now} + ?
		WHERE copy_sequence = ? AND media_id = ? AND lease_token = ? AND state = 'owed'`),
		s.options.Lease.Microseconds(), it.CopySequence, it.MediaID, it.Token)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}
