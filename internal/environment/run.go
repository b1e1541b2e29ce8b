package environment

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// Run takes snapshots and copies items until the context ends, and returns
// when what it began is recorded.
func (s *Store) Run(ctx context.Context, poll time.Duration, logger *slog.Logger) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for ctx.Err() == nil {
		more, err := s.round(ctx, logger)
		if err != nil && ctx.Err() == nil {
			logger.Error("environments could not be copied: trying again", "error", err)
		}
		if more && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.woken:
		case <-tick.C:
		}
	}
}

// round takes what is due once. It tells whether there is likely more.
func (s *Store) round(ctx context.Context, logger *slog.Logger) (bool, error) {
	if err := s.Snapshots(ctx); err != nil {
		return false, err
	}
	items, err := s.due(ctx, 4*s.options.Concurrency)
	if err != nil {
		return false, err
	}
	var copying sync.WaitGroup
	slots := make(chan struct{}, s.options.Concurrency)
	for i := range items {
		it := &items[i]
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		mine, err := s.lease(ctx, it)
		if err != nil || !mine {
			<-slots
			continue
		}
		copying.Go(func() {
			defer func() { <-slots }()
			if err := s.copyItem(ctx, it); err != nil && failure.Of(err).Class != failure.Interrupted {
				logger.Warn("a media could not be copied to its environment", "media_id", it.MediaID,
					"lane_id", it.TargetLane, "error", err)
			}
		})
	}
	copying.Wait()
	return len(items) > 0, s.closeCopies(ctx)
}

// due lists items of active copies whose target isn't blocked or paused.
func (s *Store) due(ctx context.Context, n int) ([]item, error) {
	var items []item
	err := s.db.SelectContext(ctx, &items, s.db.SQL(`
		SELECT `+itemColumns+` FROM `+itemTables+`
		WHERE i.state = 'owed' AND i.next_attempt_at <= {now} AND c.state = 'active' AND NOT l.held
		AND (i.leased_until IS NULL OR i.leased_until < {now})
		ORDER BY i.next_attempt_at, i.copy_sequence LIMIT ?`), n)
	return items, wrap("look for items to copy", err)
}

// closeCopies ends copies that owe nothing and that no media can join any more.
func (s *Store) closeCopies(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, s.db.SQL(`
		UPDATE {copies} SET state = 'ended' WHERE state = 'active'
		AND NOT EXISTS (SELECT 1 FROM {copy_items} i WHERE i.copy_sequence = {copies}.sequence AND i.state = 'owed')
		AND NOT EXISTS (SELECT 1 FROM {outbox} e WHERE e.lane_id = {copies}.source_lane
			AND e.sequence < {copies}.sequence AND e.media_id IS NOT NULL
			AND e.state IN ('available', 'running', 'retryable'))
		AND NOT EXISTS (SELECT 1 FROM {copy_items} o WHERE o.target_lane = {copies}.source_lane
			AND o.copy_sequence < {copies}.sequence AND o.state = 'owed')`))
	return wrap("end finished copies", err)
}
