package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

func latencyScenarios() []scenario {
	return []scenario{{"latency/idle", latency}}
}

// latency publishes one event at a time to a worker that waits for it, and
// measures from the return of the publisher's COMMIT to the handler's start.
func latency(ctx context.Context, e *environment) ([]row, error) {
	rounds := pick(e.scale, 1, 6)
	events := pick(e.scale, 45, 1800)
	subjects := []subject{ownbucket, riverQueue}
	waits := make([][]time.Duration, len(subjects))
	for range rounds {
		for i, s := range subjects {
			some, err := waitsOf(ctx, e, s, events/rounds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			waits[i] = append(waits[i], some...)
			if err := e.cleanUpAll(); err != nil {
				return nil, err
			}
		}
	}
	var rows []row
	for _, p := range []int{50, 99} {
		unit := fmt.Sprintf("ms, p%d", p)
		ours, theirs := percentile(waits[0], p), percentile(waits[1], p)
		rows = append(rows,
			row{Scenario: "latency/idle", Subject: ownbucket.name, Events: events, Figure: ours, Unit: unit, Peer: riverQueue.name,
				Target: "≤ River's", Met: new(ours <= theirs), Limit: "NOTIFY, then one query"},
			row{Scenario: "latency/idle", Subject: riverQueue.name, Events: events, Figure: theirs, Unit: unit,
				Limit: "NOTIFY, then a fetch"})
	}
	return rows, nil
}

// percentile is in milliseconds.
func percentile(waits []time.Duration, p int) float64 {
	slices.Sort(waits)
	return float64(waits[(len(waits)-1)*p/100].Microseconds()) / 1000
}

// waitsOf is one wait per event, but for those that warm up.
func waitsOf(ctx context.Context, e *environment, s subject, events int) ([]time.Duration, error) {
	const warmUp = 20
	url, err := s.create(ctx, e)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	started, ended := make(chan time.Time, 1), make(chan error, 1)
	go func() { ended <- s.consume(consuming, url, func(string) { started <- time.Now() }, func(int) {}) }()

	var waits []time.Duration
	for i := range warmUp + events {
		time.Sleep(5*time.Millisecond + rand.N(35*time.Millisecond))
		if err := publishOne(ctx, conn, s.publish, "media-"+strconv.Itoa(i)); err != nil {
			return nil, err
		}
		committed := time.Now()
		select {
		case at := <-started:
			if i >= warmUp {
				// It may begin before the publisher hears of its own commit.
				waits = append(waits, max(at.Sub(committed), 0))
			}
		case err := <-ended:
			return nil, errors.Join(errors.New("the consumer ended early"), err)
		case <-time.After(30 * time.Second):
			stop()
			return nil, errors.Join(errors.New("an event wasn't handled within 30 s"), <-ended)
		}
	}
	stop()
	return waits, <-ended
}

// publishOne is the whole transaction of a publisher.
func publishOne(ctx context.Context, conn *pgx.Conn, publish func(context.Context, pgx.Tx, string) error, mediaID string) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := publish(ctx, tx, mediaID); err != nil {
		return errors.Join(fmt.Errorf("publish: %w", err), tx.Rollback(ctx))
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}
