package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
)

const (
	probeTimeout = time.Minute
	probesAtOnce = 8
	pruneEvery   = time.Minute
	pruneBatch   = 1000
)

// probeLoop tries blocked integrations on a key of their own, so that no event
// is spent on finding out whether the customer has mended the account.
func (w *Worker) probeLoop(ctx context.Context) {
	tick := time.NewTicker(lazily * w.config.Poll)
	defer tick.Stop()
	var probing sync.WaitGroup
	defer probing.Wait()
	slots := make(chan struct{}, probesAtOnce)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		free := cap(slots) - len(slots)
		if free == 0 {
			continue
		}
		due, err := w.settings.DueProbes(ctx, free, 2*probeTimeout)
		if err != nil {
			if ctx.Err() == nil {
				w.config.Logger.Error("blocked integrations could not be read: trying again", "error", err)
			}
			continue
		}
		for _, one := range due {
			slots <- struct{}{}
			probing.Go(func() {
				defer func() { <-slots }()
				if err := failure.Contain(func() error { w.probe(ctx, one); return nil }); err != nil {
					w.config.Logger.Error("a probe's end could not be recorded: it is made anew when its lease has ended",
						"service_id", one.ServiceID, "environment_id", one.EnvironmentID, "error", err)
				}
			})
		}
	}
}

func (w *Worker) probe(ctx context.Context, one integration.Integration) {
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := failure.Contain(func() error {
		b, err := w.buckets.Bucket(one.Account())
		if err != nil {
			return err
		}
		return b.Probe(probing)
	})
	if err != nil && ctx.Err() != nil {
		return // cut off, it tells nothing: it is made anew when its lease has ended
	}
	// How it went is recorded even while the worker stops.
	ctx = context.WithoutCancel(ctx)
	logger := w.config.Logger.With("service_id", one.ServiceID, "environment_id", one.EnvironmentID)
	if err == nil {
		switch err := w.settings.ProbePassed(ctx, one); {
		case errors.Is(err, integration.ErrChanged):
			return // which has them probed at once
		case err != nil:
			logger.Error("a blocked integration could not be released: it is probed again", "error", err)
			return
		}
		logger.Info("a blocked integration works again: its events go on")
		w.subscriber.Wake()
		w.environments.Wake()
		return
	}
	code, reason := "", ""
	if f := failure.Of(err); f.Class == failure.Integration {
		code, reason = f.Code, f.Error()
	}
	logger.Info("a blocked integration still fails", "error", err)
	if err := w.settings.ProbeFailed(ctx, one, code, reason); err != nil && !errors.Is(err, integration.ErrChanged) {
		logger.Error("a failed probe could not be recorded", "error", err)
	}
}

// pruneLoop drops what its retention is over for, a batch at a time.
func (w *Worker) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := w.prune(ctx); err != nil && ctx.Err() == nil {
			w.config.Logger.Error("finished events could not be pruned: trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *Worker) prune(ctx context.Context) error {
	for after := int64(0); ctx.Err() == nil; {
		next, _, err := w.outbox.Prune(ctx, w.config.Retention, after)
		if err != nil {
			return err
		}
		if next == 0 {
			break
		}
		after = next
	}
	for ctx.Err() == nil {
		n, err := w.ledger.PruneTombstones(ctx, w.config.Retention, pruneBatch)
		if err != nil {
			return err
		}
		if n < pruneBatch {
			return nil
		}
	}
	return nil
}
