package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

func scalingScenarios() []scenario {
	return []scenario{{"scaling-out/20ms", scaling}}
}

// scaling sets worker processes beside each other on one database.
func scaling(ctx context.Context, e *environment) ([]row, error) {
	const name = "scaling-out/20ms"
	names := map[int]string{1: "1 worker", 2: "2 workers", 4: "4 workers", 10: "10 workers"}
	events, longest := pick(e.scale, 20_000, 400_000), pick(e.scale, 2*time.Second, 25*time.Second)
	var rows []row
	for _, workers := range []int{1, 2, 4, 10} {
		url, err := ownbucket.create(ctx, e)
		if err != nil {
			return nil, err
		}
		if err := fill(ctx, url, ownbucket, events, 1000); err != nil {
			return nil, err
		}
		seen, err := scaleTo(ctx, url, workers, window{workers * pick(e.scale, 500, 5000), events * 9 / 10, longest})
		if err != nil {
			return nil, fmt.Errorf("%d workers: %w", workers, err)
		}
		if err := e.cleanUpAll(); err != nil {
			return nil, err
		}
		machine := seen.took.Seconds() * float64(runtime.NumCPU())
		figure := row{Scenario: name, Subject: names[workers], Events: seen.events, Figure: seen.rate(), Unit: "events/s",
			Limit: fmt.Sprintf("%d × 3,200/s; of %d cores PostgreSQL used %.0f %%, the workers %.0f %%", workers,
				runtime.NumCPU(), 100*seen.server.Seconds()/machine, 100*seen.own.Seconds()/machine)}
		if workers > 1 {
			figure.Peer = names[1]
		}
		rows = append(rows, figure)
		add := func(figure float64, unit string) {
			rows = append(rows, row{Scenario: name, Subject: names[workers], Events: seen.events, Figure: figure, Unit: unit})
		}
		add(seen.server.Seconds()*1e6/float64(seen.events), "µs CPU of PostgreSQL/event")
		add(seen.transactions, "transactions/event")
		add(seen.waiting, "sessions waiting for a lock")
	}
	return rows, nil
}

// scaled is what is seen of several workers.
type scaled struct {
	sample
	transactions float64 // committed ones per event, over the whole run
	waiting      float64 // sessions that wait for a lock, on average
}

func scaleTo(ctx context.Context, url string, workers int, w window) (scaled, error) {
	looker, err := newLooker(ctx, url)
	if err != nil {
		return scaled{}, err
	}
	defer looker.conn.Close(context.WithoutCancel(ctx))
	before, err := looker.committed(ctx)
	if err != nil {
		return scaled{}, err
	}
	sampling, stopSampling := context.WithCancel(ctx)
	defer stopSampling()
	var sampled sync.WaitGroup
	var waiting float64
	var sampleFailed error
	sampled.Go(func() { waiting, sampleFailed = looker.lockWaits(sampling) })

	completed := 0
	seen, err := measure(ctx, url, w, func(ctx context.Context, done func(int)) error {
		var mu sync.Mutex
		return runWorkers(ctx, url, workers, func(n int) {
			mu.Lock()
			completed += n
			mu.Unlock()
			done(n)
		})
	})
	stopSampling()
	sampled.Wait()
	if err := errors.Join(err, sampleFailed); err != nil {
		return scaled{}, err
	}
	after, err := looker.committed(ctx)
	return scaled{seen, (after - before) / float64(completed), waiting}, err
}

// looker looks at a database from another one, whose transactions are counted
// apart.
type looker struct {
	conn     *pgx.Conn
	database string
}

func newLooker(ctx context.Context, url string) (*looker, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	l := &looker{database: config.Database}
	config.Database = "postgres"
	l.conn, err = pgx.ConnectConfig(ctx, config)
	return l, err
}

// committed is how many transactions the database has committed. It waits for
// all sessions to end: only then all that they did is counted.
func (l *looker) committed(ctx context.Context) (transactions float64, err error) {
	for sessions := -1; sessions != 0; time.Sleep(10 * time.Millisecond) {
		err := l.conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = $1 AND backend_type = 'client backend'`, l.database).Scan(&sessions)
		if err != nil {
			return 0, fmt.Errorf("wait for sessions to end: %w", err)
		}
	}
	err = l.conn.QueryRow(ctx, `SELECT xact_commit FROM pg_stat_database WHERE datname = $1`, l.database).Scan(&transactions)
	if err != nil {
		return 0, fmt.Errorf("count transactions: %w", err)
	}
	return transactions, nil
}

// lockWaits is how many sessions wait for a lock, on average, as seen a
// hundred times a second until the context ends.
func (l *looker) lockWaits(ctx context.Context) (mean float64, err error) {
	sum, samples := 0, 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return float64(sum) / float64(max(samples, 1)), nil
		case <-tick.C:
		}
		var waiting int
		err := l.conn.QueryRow(context.WithoutCancel(ctx), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = $1 AND wait_event_type = 'Lock'`, l.database).Scan(&waiting)
		if err != nil {
			return 0, fmt.Errorf("look for lock waits: %w", err)
		}
		sum += waiting
		samples++
	}
}
