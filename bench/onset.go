package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/internal/integration"
)

// beside is how many customers something suddenly happens to.
const beside = 8

// onset has the buckets of integrations hang that are busy with as many events
// at once as they may be, and looks at the others from then on.
func onset(ctx context.Context, e *environment) ([]row, error) {
	return suddenly(ctx, e, "isolation/onset", "none hangs", "8 began to hang", func(t *tenancy, each int) error {
		if err := t.publishUploads(ctx, "beside", beside, uploadSize, 1, beside*each); err != nil {
			return err
		}
		if err := t.busy(ctx, beside); err != nil {
			return err
		}
		return t.aws.behave(inAWS, besides()...)
	})
}

// bulk has paused customers publish all at once, and looks at the others from
// then on.
func bulk(ctx context.Context, e *environment) ([]row, error) {
	return suddenly(ctx, e, "isolation/bulk", "nothing published", "8 paused ones published much", func(t *tenancy, each int) error {
		settings := integration.New(t.db)
		for _, service := range besides() {
			if err := settings.Pause(ctx, service, "", "bench", "a benchmark"); err != nil {
				return err
			}
		}
		return t.publishUploads(ctx, "beside", beside, uploadSize, 1, beside*each)
	})
}

// suddenly compares the others' events before and after something happens to
// customers, to each with as many events, while the worker runs.
func suddenly(ctx context.Context, e *environment, name, before, after string, happen func(t *tenancy, each int) error) ([]row, error) {
	aws, root, err := startSite(e, uploadSize)
	if err != nil {
		return nil, err
	}
	t, err := e.tenancy(ctx, aws, root, 0)
	if err != nil {
		return nil, err
	}
	if err := t.addCustomers(ctx, "beside", beside); err != nil {
		return nil, err
	}
	if err := aws.behave(inAWS); err != nil {
		return nil, err
	}
	capacity, err := t.capacity(ctx, pick(e.scale, 3000, 20_000))
	if err != nil {
		return nil, err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	stopped := make(chan error, 1)
	go func() { stopped <- t.work(working) }()

	slice := pick(e.scale, 2*time.Second, 8*time.Second)
	first, err := t.loaded(ctx, capacity/2, slice)
	if err != nil {
		return nil, err
	}
	if err := happen(t, pick(e.scale, 3000, waiting)); err != nil {
		return nil, err
	}
	then, err := t.loaded(ctx, capacity/2, slice)
	if err != nil {
		return nil, err
	}
	stop()
	rows := append(latencyRows(name, before, first, capacity/2), latencyRows(name, after, then, capacity/2)...)
	return compare(rows, 2), <-stopped
}

// besides names the services of those customers, which are their buckets'
// names, too.
func besides() []string {
	names := make([]string, beside)
	for k := range names {
		names[k] = fmt.Sprintf("beside-%d", k)
	}
	return names
}

// loaded is the latency of a load.
func (t *tenancy) loaded(ctx context.Context, rate float64, during time.Duration) ([]time.Duration, error) {
	above, err := t.lastSequence(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.load(ctx, rate, during); err != nil {
		return nil, err
	}
	return t.latency(ctx, above)
}

// busy waits until each of those integrations has made some progress.
func (t *tenancy) busy(ctx context.Context, integrations int) error {
	return t.until(ctx, `
		SELECT ? <= (
			SELECT count(*) FROM (SELECT 1 FROM {lanes} l JOIN {outbox} e ON e.lane_id = l.lane_id
				WHERE starts_with(l.service_id, 'beside') AND e.outcome = 'done'
				GROUP BY l.lane_id HAVING count(*) > 100) AS lanes)`, integrations)
}
