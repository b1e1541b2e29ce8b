package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

const (
	healthy = "healthy" // services, and how many of them
	others  = 16
	waiting = 10_000 // events of each integration that hangs
)

func isolationScenarios() []scenario {
	return []scenario{{"isolation", isolation}, {"isolation/onset", onset}, {"isolation/bulk", bulk}}
}

// tenancy is an installation of its own with its worker, where as many
// integrations hang; they are measured in turns.
type tenancy struct {
	*installation
	hanging   int
	published int
	turns     [][]time.Duration // what the others' events took in each turn
}

// isolation measures how long the others' events take from their publishing to
// their completion, at half of what a worker can do.
func isolation(ctx context.Context, e *environment) (rows []row, err error) {
	aws, root, err := startSite(e, uploadSize)
	if err != nil {
		return nil, err
	}
	var tenancies []*tenancy
	var hung []string
	for _, hanging := range []int{0, 1, 8} {
		t, err := e.tenancy(ctx, aws, root, hanging)
		if err != nil {
			return nil, err
		}
		tenancies = append(tenancies, t)
		for k := range hanging {
			hung = append(hung, fmt.Sprintf("%s-%d", t.hangs(), k))
		}
	}
	if err := aws.behave(inAWS, hung...); err != nil {
		return nil, err
	}
	capacity, err := tenancies[0].capacity(ctx, pick(e.scale, 3000, 20_000))
	if err != nil {
		return nil, err
	}
	e.logger.Info("calibrated", "events/s", capacity)

	working, stop := context.WithCancel(ctx)
	stopped := make(chan error, len(tenancies))
	for _, t := range tenancies {
		go func() { stopped <- t.work(working) }()
	}
	defer func() {
		stop()
		for range tenancies {
			err = errors.Join(err, <-stopped)
		}
	}()
	for _, t := range tenancies {
		if err := t.hang(ctx); err != nil {
			return nil, err
		}
	}
	// Short turns: what else goes on on the machine then concerns all alike.
	rounds, slice := pick(e.scale, 3, 20), pick(e.scale, 2*time.Second, 4*time.Second)
	for round := range rounds + 1 {
		for _, t := range tenancies {
			took, err := t.loaded(ctx, capacity/2, slice)
			if err != nil {
				return nil, err
			}
			if round > 0 { // the first one warms everything up
				t.turns = append(t.turns, took)
			}
		}
	}
	return latencies(tenancies, capacity/2), nil
}

func (e *environment) tenancy(ctx context.Context, aws *standIn, root string, hanging int) (*tenancy, error) {
	i, err := e.install(ctx, "isolation", aws, root)
	if err != nil {
		return nil, err
	}
	t := &tenancy{installation: i, hanging: hanging}
	if err := i.addCustomers(ctx, t.others(), others); err != nil {
		return nil, err
	}
	if hanging == 0 {
		return t, nil
	}
	if err := i.addCustomers(ctx, t.hangs(), hanging); err != nil {
		return nil, err
	}
	return t, i.publishUploads(ctx, t.hangs(), hanging, uploadSize, 1, hanging*waiting)
}

// The services' names are the buckets', so no two tenancies share them.
func (t *tenancy) others() string { return fmt.Sprintf("%s-beside-%d", healthy, t.hanging) }
func (t *tenancy) hangs() string  { return fmt.Sprintf("hanging-%d", t.hanging) }

// capacity is how many events a second a worker does of a backlog.
func (t *tenancy) capacity(ctx context.Context, events int) (float64, error) {
	if err := t.publishUploads(ctx, t.others(), others, uploadSize, 1, events); err != nil {
		return 0, err
	}
	t.published = events
	w, done, err := t.worker(ctx, nil)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(w.RunUntilIdle(ctx, 10*time.Minute), done()); err != nil {
		return 0, err
	}
	took, err := t.took(ctx, 0)
	return float64(events) / took.Seconds(), err
}

func (t *tenancy) work(ctx context.Context) error {
	w, done, err := t.worker(ctx, nil)
	if err != nil {
		return err
	}
	return errors.Join(w.Run(ctx), done())
}

// load publishes the others' uploads at a constant rate, each in a transaction
// of its own, however long they take, and waits until they are done.
func (t *tenancy) load(ctx context.Context, rate float64, during time.Duration) error {
	const publishers = 4
	events := int64(rate * during.Seconds())
	db, err := database.Open(ctx, t.url, database.DefaultSchema)
	if err != nil {
		return err
	}
	var next atomic.Int64
	var publishing sync.WaitGroup
	failed := make(chan error, publishers)
	started := time.Now()
	for range publishers {
		publishing.Go(func() {
			for k := next.Add(1) - 1; k < events && ctx.Err() == nil; k = next.Add(1) - 1 {
				time.Sleep(time.Until(started.Add(time.Duration(float64(k) / rate * float64(time.Second)))))
				number := t.published + 1 + int(k)
				if _, err := db.ExecContext(ctx, db.SQL(upload), t.others(), others, uploadSize, number, number); err != nil {
					failed <- fmt.Errorf("publish: %w", err)
					return
				}
			}
		})
	}
	publishing.Wait()
	close(failed)
	t.published += int(events)
	return errors.Join(<-failed, t.drained(ctx), db.Close())
}

// drained waits until nothing of the others is left. Their lanes are there since
// their settings were made.
func (t *tenancy) drained(ctx context.Context) error {
	return t.until(ctx, `
		SELECT NOT EXISTS (SELECT 1 FROM {lanes} l JOIN {outbox} e ON {in_lane e l} AND `+outbox.Readable+` WHERE starts_with(l.service_id, ?))
			AND NOT EXISTS (SELECT 1 FROM {lanes} l JOIN {outbox} e ON e.lane_id = l.lane_id AND e.parked
				WHERE starts_with(l.service_id, ?))`, healthy, healthy)
}

// hang waits until calls of all integrations hang that are to.
func (t *tenancy) hang(ctx context.Context) error {
	return t.until(ctx, `SELECT count(DISTINCT lane_id) >= ? FROM {outbox}
		WHERE state = 'running' AND starts_with(service_id, ?)`, t.hanging, t.hangs())
}

// until waits until the query answers true.
func (t *tenancy) until(ctx context.Context, query string, args ...any) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var reached bool
		if err := t.db.GetContext(ctx, &reached, t.db.SQL(query), args...); err != nil || reached {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// latencies compares the others' events of each tenancy with the first's.
func latencies(tenancies []*tenancy, rate float64) []row {
	var rows []row
	for _, t := range tenancies {
		subject := fmt.Sprintf("%d hang", t.hanging)
		of := latencyRows("isolation", subject, slices.Concat(t.turns...), rate)
		// Another one's burst on the machine falls into few turns.
		each := make([]float64, len(t.turns))
		for i, took := range t.turns {
			each[i] = percentile(took, 99)
		}
		slices.Sort(each)
		typical := of[1]
		typical.Figure, typical.Unit = each[len(each)/2], "ms, p99 of the median turn"
		rows = append(rows, append(of, typical)...)
	}
	return compare(rows, 3)
}

// latency is the time from publishing to completion of the others' events
// above a sequence.
func (t *tenancy) latency(ctx context.Context, above int64) (took []time.Duration, err error) {
	err = t.db.SelectContext(ctx, &took, t.db.SQL(`
		SELECT (finished_at - created_at) * 1000 FROM {outbox}
		WHERE sequence > ? AND starts_with(service_id, ?) AND outcome = 'done'`), above, healthy)
	if err == nil && len(took) == 0 {
		err = errors.New("no event was done")
	}
	return took, err
}

func latencyRows(scenario, subject string, took []time.Duration, rate float64) []row {
	var rows []row
	for _, p := range []int{50, 99} {
		rows = append(rows, row{Scenario: scenario, Subject: subject, Events: len(took), Figure: percentile(took, p),
			Unit: fmt.Sprintf("ms, p%d", p), Limit: fmt.Sprintf("%.0f events/s, half of what a worker can do", rate)})
	}
	return rows
}

// compare holds every subject's rows, of which each has n, against the first's.
func compare(rows []row, n int) []row {
	for i := range rows[n:] {
		r, base := &rows[n+i], rows[i%n]
		r.Peer = base.Subject
		if i%n > 0 {
			r.Target, r.Met = "≤ 1.2 × "+base.Subject, new(r.Figure <= 1.2*base.Figure)
		}
	}
	return rows
}
