package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/database"
)

// vacuumKeepsUp runs no-ops as fast as they go, fed as fast as they are
// consumed, and watches the tables under autovacuum as it is by default.
func vacuumKeepsUp(ctx context.Context, e *environment) ([]row, error) {
	const often = 2 * time.Second
	during := pick(e.scale, 20*time.Second, 10*time.Minute)
	db, url, err := e.database(ctx, "vacuum")
	if err != nil {
		return nil, err
	}
	var published, completed atomic.Int64
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 2)
	go func() {
		ended <- consumeOutbox(running, url, func(string) {}, func(n int) { completed.Add(int64(n)) })
	}()
	go func() { ended <- feed(running, url, &published, &completed) }()

	var seen []condition
	tick := time.NewTicker(often)
	defer tick.Stop()
	for started := time.Now(); time.Since(started) < during; {
		select {
		case err := <-ended:
			return nil, errors.Join(errors.New("it ended early"), err)
		case <-tick.C:
		}
		now, err := conditionOf(ctx, db)
		if err != nil {
			return nil, err
		}
		now.completed = completed.Load()
		seen = append(seen, now)
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	return vacuumRows(e, seen, often), nil
}

// feed keeps some events waiting, and no more.
func feed(ctx context.Context, url string, published, completed *atomic.Int64) error {
	const batch, ahead, lanes = 500, 2000, 1000
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for ctx.Err() == nil {
		from := published.Load()
		if from-completed.Load() > ahead {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := ownbucket.insert(ctx, conn, int(from)+1, int(from)+batch, lanes); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		published.Add(batch)
	}
	return nil
}

// condition is how the tables are at a moment.
type condition struct {
	completed int64
	tables    []tableCondition
}

type tableCondition struct {
	Name    string
	Dead    int64
	Live    int64
	Bytes   int64
	Vacuums int64
}

func conditionOf(ctx context.Context, db sqlx.QueryerContext) (condition, error) {
	var c condition
	err := sqlx.SelectContext(ctx, db, &c.tables, `
		SELECT relname AS name, n_dead_tup AS dead, n_live_tup AS live, pg_total_relation_size(relid) AS bytes,
			autovacuum_count AS vacuums
		FROM pg_stat_user_tables WHERE schemaname = $1 ORDER BY relname`, database.DefaultSchema)
	if err != nil {
		return c, fmt.Errorf("look at the tables: %w", err)
	}
	return c, nil
}

// vacuumRows compare the last third of the time with the one before it: dead
// rows that are level then stay so.
func vacuumRows(e *environment, seen []condition, often time.Duration) []row {
	const scenario = "backlog/vacuum"
	third := len(seen) / 3
	middle, last := seen[third:2*third], seen[2*third:]
	rate := func(part []condition) float64 {
		return float64(part[len(part)-1].completed-part[0].completed) / (float64(len(part)-1) * often.Seconds())
	}
	all := int(seen[len(seen)-1].completed)
	rows := []row{
		{Scenario: scenario, Subject: "the middle third", Events: all, Figure: rate(middle), Unit: "events/s"},
		{Scenario: scenario, Subject: "the last third", Events: all, Figure: rate(last), Unit: "events/s", Peer: "the middle third"},
	}
	for i, at := range seen[len(seen)-1].tables {
		most := func(part []condition) int64 {
			return slices.MaxFunc(part, func(a, b condition) int { return int(a.tables[i].Dead - b.tables[i].Dead) }).tables[i].Dead
		}
		before, after := most(middle), most(last)
		const few = 1000 // of them don't matter
		if max(before, after) < few {
			continue
		}
		r := row{Scenario: scenario, Subject: at.Name, Events: all, Figure: float64(after), Unit: "dead rows at most",
			Limit: fmt.Sprintf("%d in the middle third; %d autovacuums; %d live rows in %d MiB at the end",
				before, at.Vacuums, at.Live, at.Bytes>>20)}
		// Autovacuum comes once a minute: less than some rounds of it tell nothing.
		if e.scale == full {
			r.Target, r.Met = "≤ 1.5 × the middle third's", new(float64(after) <= 1.5*float64(before))
		}
		rows = append(rows, r)
	}
	return rows
}
