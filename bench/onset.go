package main

import (
	"context"
	"fmt"
	"time"
)

// onset has the buckets of integrations hang that are busy with as many events
// at once as they may be, and looks at the others from then on.
func onset(ctx context.Context, e *environment) ([]row, error) {
	const name, busy = "isolation/onset", 8
	each := pick(e.scale, 3000, waiting)
	aws, root, err := startSite(e, uploadSize)
	if err != nil {
		return nil, err
	}
	t, err := e.tenancy(ctx, aws, root, 0)
	if err != nil {
		return nil, err
	}
	if err := t.addCustomers(ctx, "busy", busy); err != nil {
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
	before, err := t.loaded(ctx, capacity/2, slice)
	if err != nil {
		return nil, err
	}
	if err := t.publishUploads(ctx, "busy", busy, uploadSize, 1, busy*each); err != nil {
		return nil, err
	}
	if err := t.busy(ctx, busy); err != nil {
		return nil, err
	}
	hung := make([]string, busy)
	for k := range hung {
		hung[k] = fmt.Sprintf("busy-%d", k)
	}
	if err := aws.behave(inAWS, hung...); err != nil {
		return nil, err
	}
	after, err := t.loaded(ctx, capacity/2, slice)
	if err != nil {
		return nil, err
	}
	stop()
	rows := append(latencyRows(name, "none hangs", before, capacity/2), latencyRows(name, "8 began to hang", after, capacity/2)...)
	return compare(rows, 2), <-stopped
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

// busy waits until each of the busy integrations has made some progress, and
// all their events are in their lanes.
func (t *tenancy) busy(ctx context.Context, integrations int) error {
	return t.until(ctx, `
		SELECT NOT EXISTS (SELECT 1 FROM {outbox} WHERE lane_id IS NULL) AND ? <= (
			SELECT count(*) FROM (SELECT 1 FROM {lanes} l JOIN {outbox} e ON e.lane_id = l.lane_id
				WHERE starts_with(l.service_id, 'busy') AND e.outcome = 'done'
				GROUP BY l.lane_id HAVING count(*) > 100) AS lanes)`, integrations)
}
