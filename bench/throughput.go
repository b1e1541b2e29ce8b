package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	slots   = 64 // events in flight at most, of every subject
	perfect = 64 / 0.02
)

// handler is what every subject does with an event.
type handler struct {
	name   string
	handle func(mediaID string)
}

var (
	noOp   = handler{"no-op", func(string) {}}
	twenty = handler{"20ms", func(string) { time.Sleep(20 * time.Millisecond) }}
)

// backlog waits before anybody consumes.
type backlog struct {
	name          string
	events, lanes int
	window        window
	// rounds are how often the subjects take turns, so that what else the
	// machine does hits them all. Before them are those that only warm everything
	// up: the first of all turns is half as fast as the next.
	warming, rounds int
}

func backlogs(s scale) []backlog {
	longest := pick(s, 1500*time.Millisecond, 30*time.Second)
	few, many := pick(s, 3_000, 10_000), pick(s, 30_000, 1_000_000)
	return []backlog{
		{"10000", few, 1000, window{1, few, longest}, pick(s, 0, 1), pick(s, 1, 6)},
		{"1000000", many, 1000, window{2 * few, pick(s, 15_000, 300_000), longest}, 0, pick(s, 1, 2)},
		{"200000-lanes", pick(s, 6_000, 400_000), pick(s, 3_000, 200_000), window{few, pick(s, 5_500, 300_000), longest}, 0, 1},
		{"hot-lane", 2 * few, 1, window{1, 2 * few, longest}, 0, pick(s, 1, 4)},
	}
}

func throughputScenarios() []scenario {
	var list []scenario
	for _, h := range []handler{noOp, twenty} {
		for i, b := range backlogs(full) {
			name := "throughput/" + h.name + "/" + b.name
			list = append(list, scenario{name, func(ctx context.Context, e *environment) ([]row, error) {
				return throughput(ctx, e, name, h, backlogs(e.scale)[i])
			}})
		}
	}
	return list
}

// contender is a subject under some condition, and what was seen of it.
type contender struct {
	subject
	name string
	open bool // another session holds a transaction open
	seen sample
}

// throughput lets the contenders take turns, each with a database of its own.
func throughput(ctx context.Context, e *environment, name string, h handler, b backlog) ([]row, error) {
	peer := &contender{subject: riverQueue, name: riverQueue.name}
	contenders := []*contender{
		{subject: ownbucket, name: ownbucket.name},
		{subject: ownbucket, name: ownbucket.name + ", a transaction open", open: true},
		peer,
		{subject: watermillSQL, name: watermillSQL.name},
	}
	for round := range b.warming + b.rounds {
		for _, c := range contenders {
			seen, err := c.consumeBacklog(ctx, e, h, b)
			if err = errors.Join(err, e.cleanUpAll()); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			e.logger.Info("turn", "scenario", name, "subject", c.name, "rate", int(seen.rate()), "cpu", int(seen.cpuPerEvent()))
			if round >= b.warming {
				c.seen = c.seen.add(seen)
			}
		}
	}
	var rows []row
	for _, c := range contenders {
		r := row{Scenario: name, Subject: c.name, Events: b.events, Figure: c.seen.rate(), Unit: "events/s", Limit: c.limit}
		if c != peer {
			r.Peer = peer.name
		}
		if c.subject.name == ownbucket.name {
			r.aim(h, peer.seen.rate())
		}
		cost := row{Scenario: name, Subject: c.name, Events: b.events, Figure: c.seen.cpuPerEvent(), Unit: "µs CPU/event", Peer: r.Peer}
		rows = append(append(rows, r), append(e.growth(r, h, b), cost)...)
	}
	return rows, nil
}

// aim sets what is asked of our figure.
func (r *row) aim(h handler, peer float64) {
	if h.name == noOp.name {
		r.Target, r.Met = "≥ 2 × River", new(r.Figure >= 2*peer)
		r.Limit = "CPU, which we share with PostgreSQL"
		return
	}
	r.Target, r.Met = "≥ 0.95 × 3,200", new(r.Figure >= 0.95*perfect)
	r.Limit = "64 handlers of 20 ms: 3,200/s"
}

// growth is what a hundred times as many waiting events cost us.
func (e *environment) growth(r row, h handler, b backlog) []row {
	few, ok := e.figure("throughput/"+h.name+"/10000", r.Subject, r.Unit)
	if b.name != "1000000" || !ok || r.Target == "" {
		return nil
	}
	ratio := r.Figure / few
	return []row{{Scenario: r.Scenario, Subject: r.Subject, Events: b.events, Figure: ratio, Unit: "of the rate at 10,000",
		Target: "≥ 0.95", Met: new(ratio >= 0.95)}}
}

// consumeBacklog fills a fresh database and measures how it is emptied.
func (c *contender) consumeBacklog(ctx context.Context, e *environment, h handler, b backlog) (sample, error) {
	url, err := c.create(ctx, e)
	if err != nil {
		return sample{}, err
	}
	if c.open {
		if err := holdTransaction(ctx, e, url); err != nil {
			return sample{}, err
		}
	}
	if err := fill(ctx, url, c.subject, b.events, b.lanes); err != nil {
		return sample{}, err
	}
	if err := rest(ctx, url); err != nil {
		return sample{}, err
	}
	return measure(ctx, url, b.window, func(ctx context.Context, done func(int)) error {
		return c.consume(ctx, url, h.handle, done)
	})
}

// rest lets the database finish what filling it began, so that a backlog is
// measured and not the vacuuming that follows a bulk load.
func rest(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range []string{"VACUUM ANALYZE", "CHECKPOINT"} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s after filling: %w", statement, err)
		}
	}
	return nil
}
