package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

func publishingScenarios() []scenario {
	var list []scenario
	for _, connections := range []int{8, 32} {
		for _, worker := range []string{"idle", "busy"} {
			name := fmt.Sprintf("publishing/%d-connections/%s", connections, worker)
			list = append(list, scenario{name, func(ctx context.Context, e *environment) ([]row, error) {
				return publishing(ctx, e, name, connections, worker == "busy")
			}})
		}
	}
	return list
}

// bareTable is the outbox without what makes it one: no index besides those
// of its keys, and no trigger.
const bareTable = `
	CREATE TABLE bare (LIKE ownbucket.outbox INCLUDING DEFAULTS INCLUDING IDENTITY);
	ALTER TABLE bare ADD PRIMARY KEY (sequence), ADD UNIQUE (event_id)`

// publisher is one who publishes from many connections at once.
type publisher struct {
	name    string
	subject subject // whose worker is busy meanwhile
	publish func(ctx context.Context, tx pgx.Tx, mediaID string) error
	url     string
	conns   []*pgx.Conn
	seen    sample
}

// publishing lets the publishers take turns in short slices. Beside the bare
// table it is our worker that is busy, in the same database, so that what it
// takes of the machine is the same.
func publishing(ctx context.Context, e *environment, name string, connections int, busy bool) ([]row, error) {
	// The shorter the slices, the more alike is what else the machine does in
	// them; but a worker has to be started for each.
	rounds, length := pick(e.scale, 8, 60), pick(e.scale, 125*time.Millisecond, 250*time.Millisecond)
	if busy {
		rounds, length = pick(e.scale, 2, 15), pick(e.scale, 250*time.Millisecond, time.Second)
	}
	ours, err := ownbucket.create(ctx, e)
	if err != nil {
		return nil, err
	}
	theirs, err := riverQueue.create(ctx, e)
	if err != nil {
		return nil, err
	}
	publishers := []*publisher{
		{name: ownbucket.name, subject: ownbucket, publish: ownbucket.publish, url: ours},
		{name: "bare INSERT", subject: ownbucket, publish: publishTo("bare"), url: ours},
		{name: riverQueue.name, subject: riverQueue, publish: riverQueue.publish, url: theirs},
	}
	for _, p := range publishers {
		if err := p.connect(ctx, e, connections); err != nil {
			return nil, err
		}
	}
	if _, err := publishers[0].conns[0].Exec(ctx, bareTable); err != nil {
		return nil, fmt.Errorf("make the bare table: %w", err)
	}
	if busy {
		// More than the workers can do in all slices.
		waiting := int(perfect*length.Seconds()) * (2*rounds + 1)
		for _, p := range []*publisher{publishers[0], publishers[2]} {
			if err := fill(ctx, p.url, p.subject, waiting, 1000); err != nil {
				return nil, err
			}
		}
	}
	server, err := serverOf(ctx, ours)
	if err != nil {
		return nil, err
	}
	turns := slices.Clone(publishers)
	for round := range rounds + 1 {
		slices.Reverse(turns) // what a slice leaves behind hits each the same
		for _, p := range turns {
			if err := p.slice(ctx, server, length, busy); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			if round == 0 {
				p.seen = sample{} // statements were prepared, functions loaded
			}
		}
	}

	figure := func(p *publisher) row {
		return row{Scenario: name, Subject: p.name, Events: p.seen.events, Figure: p.seen.rate(), Unit: "transactions/s", Limit: "2 cores, and syncing the log to disk"}
	}
	us, bare, river := figure(publishers[0]), figure(publishers[1]), figure(publishers[2])
	us.Peer, us.Target, us.Met = bare.Subject, "≥ 0.8 × bare", new(us.Figure >= 0.8*bare.Figure)
	river.Peer = bare.Subject
	rows := []row{us, bare, river}
	if busy {
		return rows, nil // the CPU's time would be the worker's, too
	}
	for i, r := range rows {
		r.Figure, r.Unit, r.Target, r.Met, r.Limit = publishers[i].seen.cpuPerEvent(), "µs CPU/transaction", "", nil, ""
		rows = append(rows, r)
	}
	return rows, nil
}

// connect opens the connections before anything is measured.
func (p *publisher) connect(ctx context.Context, e *environment, connections int) error {
	for range connections {
		conn, err := pgx.Connect(ctx, p.url)
		if err != nil {
			return fmt.Errorf("connect a publisher: %w", err)
		}
		p.conns = append(p.conns, conn)
		e.cleanUp(func() error { return conn.Close(context.WithoutCancel(ctx)) })
	}
	return nil
}

// slice publishes from all connections for a while.
func (p *publisher) slice(ctx context.Context, server int, length time.Duration, busy bool) (err error) {
	if busy {
		stop, startErr := p.startWorker(ctx)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	var count atomic.Int64
	failed := make([]error, len(p.conns))
	own, theirs, begun := cpu(os.Getpid()), cpu(server), time.Now()
	var publishing sync.WaitGroup
	for i, conn := range p.conns {
		publishing.Go(func() {
			for n := 0; time.Since(begun) < length && failed[i] == nil; n++ {
				media := "p" + strconv.Itoa(i) + "-" + strconv.Itoa(n)
				failed[i] = publishOne(ctx, conn, p.publish, media)
				count.Add(1)
			}
		})
	}
	publishing.Wait()
	p.seen = p.seen.add(sample{int(count.Load()), time.Since(begun), cpu(os.Getpid()) - own, cpu(server) - theirs})
	return errors.Join(failed...)
}

// startWorker returns when the worker is at work: handlers of 20 ms.
func (p *publisher) startWorker(ctx context.Context) (stop func() error, err error) {
	consuming, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	working := make(chan struct{})
	var once sync.Once
	go func() {
		ended <- p.subject.consume(consuming, p.url, twenty.handle, func(int) { once.Do(func() { close(working) }) })
	}()
	stop = func() error { cancel(); return <-ended }
	select {
	case <-working:
		return stop, nil
	case err := <-ended:
		cancel()
		return nil, errors.Join(errors.New("the worker ended early"), err)
	}
}
