package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// job is the same event as a job of River's.
type job struct {
	ServiceID string `json:"service_id"`
	MediaID   string `json:"media_id"`
	FileName  string `json:"file_name"`
	Version   string `json:"version"`
}

func (job) Kind() string { return "media_deleted" }

func jobOf(i, lanes int) job {
	return job{
		ServiceID: fmt.Sprintf("service-%d", i%lanes), MediaID: fmt.Sprintf("media-%d", i),
		FileName: fmt.Sprintf("image-%d.png", i), Version: "2026-01-01T00:00:00Z",
	}
}

// riverQueue is River with its fastest settings. It knows no lanes.
var riverQueue = subject{
	name:  "River",
	limit: "a round of fetching and completing for each 64 jobs",
	create: func(ctx context.Context, e *environment) (string, error) {
		url, err := e.emptyDatabase(ctx)
		if err != nil {
			return "", err
		}
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return "", fmt.Errorf("migrate River: %w", err)
		}
		defer pool.Close()
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return "", fmt.Errorf("migrate River: %w", err)
		}
		if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return "", fmt.Errorf("migrate River: %w", err)
		}
		return url, nil
	},
	insert: func(ctx context.Context, conn *pgx.Conn, from, to, lanes int) error {
		client, err := riverPublisher()
		if err != nil {
			return err
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		jobs := make([]river.InsertManyParams, 0, to-from+1)
		for i := from; i <= to; i++ {
			jobs = append(jobs, river.InsertManyParams{Args: jobOf(i, lanes)})
		}
		if _, err := client.InsertManyFastTx(ctx, tx, jobs); err != nil {
			return errors.Join(err, tx.Rollback(ctx))
		}
		return tx.Commit(ctx)
	},
	publish: func(ctx context.Context, tx pgx.Tx, mediaID string) error {
		client, err := riverPublisher()
		if err != nil {
			return err
		}
		_, err = client.InsertTx(ctx, tx, job{
			ServiceID: "service-1", MediaID: mediaID, FileName: mediaID + ".png", Version: "2026-01-01T00:00:00Z",
		}, nil)
		return err
	},
	consume: consumeRiver,
}

// riverPublisher only inserts; announcing what it inserted isn't held back.
var riverPublisher = sync.OnceValues(func() (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(nil), &river.Config{FetchCooldown: river.FetchCooldownMin})
})

func consumeRiver(ctx context.Context, url string, handle func(mediaID string), done func(int)) error {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("connect River: %w", err)
	}
	config.MaxConns = 16 // as many as ours
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect River: %w", err)
	}
	defer pool.Close()
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(_ context.Context, j *river.Job[job]) error {
		handle(j.Args.MediaID)
		return nil
	}))
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:        map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: slots}},
		FetchCooldown: river.FetchCooldownMin, FetchPollInterval: river.FetchPollIntervalMin,
		JobTimeout: -1, Workers: workers, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fmt.Errorf("make River's client: %w", err)
	}
	// River announces what it has completed in the database. The channel is
	// never full: River would drop what it has no room for.
	completed, unsubscribe := client.SubscribeConfig(&river.SubscribeConfig{
		ChanSize: 200_000, Kinds: []river.EventKind{river.EventKindJobCompleted},
	})
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		for range completed {
			done(1)
		}
	}()
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err = client.Stop(stopping)
	unsubscribe()
	<-counted
	return err
}

const topic = "media_deleted"

// watermillSQL is watermill-sql's own subscriber as it comes: one message
// after the other, within a transaction.
var watermillSQL = subject{
	name:  "watermill-sql",
	limit: "one message at a time, within a transaction",
	create: func(ctx context.Context, e *environment) (string, error) {
		url, err := e.emptyDatabase(ctx)
		if err != nil {
			return "", err
		}
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return "", fmt.Errorf("make watermill-sql's tables: %w", err)
		}
		defer pool.Close()
		subscriber, err := newWatermillSQL(pool)
		if err != nil {
			return "", err
		}
		return url, errors.Join(subscriber.SubscribeInitialize(topic), subscriber.Close())
	},
	insert: func(ctx context.Context, conn *pgx.Conn, from, to, lanes int) error {
		_, err := conn.Exec(ctx, `
			INSERT INTO watermill_`+topic+` (uuid, payload, metadata, transaction_id)
			SELECT gen_random_uuid(), json_build_object('service_id', 'service-' || i % $3, 'media_id', 'media-' || i,
				'file_name', 'image-' || i || '.png', 'version', '2026-01-01T00:00:00Z'), '{}', pg_current_xact_id()
			FROM generate_series($1::int, $2::int) AS i`, from, to, lanes)
		return err
	},
	consume: func(ctx context.Context, url string, handle func(mediaID string), done func(int)) error {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return fmt.Errorf("connect watermill-sql: %w", err)
		}
		defer pool.Close()
		subscriber, err := newWatermillSQL(pool)
		if err != nil {
			return err
		}
		messages, err := subscriber.Subscribe(ctx, topic)
		if err != nil {
			return fmt.Errorf("subscribe with watermill-sql: %w", err)
		}
		for msg := range messages {
			handle("")
			msg.Ack()
			done(1)
		}
		return subscriber.Close()
	},
}

func newWatermillSQL(pool *pgxpool.Pool) (*wsql.Subscriber, error) {
	subscriber, err := wsql.NewSubscriber(wsql.BeginnerFromPgx(pool), wsql.SubscriberConfig{
		SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{},
		PollInterval: 10 * time.Millisecond, InitializeSchema: true,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("make watermill-sql's subscriber: %w", err)
	}
	return subscriber, nil
}
