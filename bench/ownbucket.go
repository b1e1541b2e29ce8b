package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	environments "github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// ownbucket is our outbox with its subscriber and router, as package worker
// wires them, but for the handlers.
var ownbucket = subject{
	name: "ownbucket",
	create: func(ctx context.Context, e *environment) (string, error) {
		db, url, err := e.database(ctx, "ownbucket")
		if err != nil {
			return "", err
		}
		return url, db.Close()
	},
	insert: func(ctx context.Context, conn *pgx.Conn, from, to, lanes int) error {
		_, err := conn.Exec(ctx, `
			INSERT INTO ownbucket.outbox (event_id, type, service_id, environment_id, data)
			SELECT gen_random_uuid(), 'MediaDeleted', 'service-' || i % $3, '', json_build_object(
				'media_id', 'media-' || i, 'file_name', 'image-' || i || '.png', 'version', '2026-01-01T00:00:00Z')
			FROM generate_series($1::int, $2::int) AS i`, from, to, lanes)
		return err
	},
	publish: publishTo("ownbucket.outbox"),
	consume: consumeOutbox,
}

// publishTo is what our publishers in any language do.
func publishTo(table string) func(ctx context.Context, tx pgx.Tx, mediaID string) error {
	statement := `
		INSERT INTO ` + table + ` (event_id, type, service_id, environment_id, data)
		VALUES (gen_random_uuid(), 'MediaDeleted', 'service-1', '', $1) ON CONFLICT (event_id) DO NOTHING`
	return func(ctx context.Context, tx pgx.Tx, mediaID string) error {
		_, err := tx.Exec(ctx, statement,
			`{"media_id": "`+mediaID+`", "file_name": "`+mediaID+`.png", "version": "2026-01-01T00:00:00Z"}`)
		return err
	}
}

// counting tells how many events a transaction that is about to commit has
// completed.
type counting struct {
	outbox.Recorder
	done func(int)
}

func (c counting) Record(ctx context.Context, tx *sqlx.Tx, settled []*outbox.Settlement, snapshots map[int64]int64) error {
	if err := c.Recorder.Record(ctx, tx, settled, snapshots); err != nil {
		return err
	}
	completed := 0
	for _, s := range settled {
		if s.Kind == outbox.Complete {
			completed++
		}
	}
	c.done(completed)
	return nil
}

func consumeOutbox(ctx context.Context, url string, handle func(mediaID string), done func(int)) (err error) {
	db, err := database.Open(ctx, url, database.DefaultSchema)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	buckets, err := bucket.NewPool(bucket.Options{})
	if err != nil {
		return err
	}
	logger := slog.New(slog.DiscardHandler)
	recorder := environments.New(db, ledger.New(db), integration.New(db), buckets, environments.Options{})
	store := outbox.New(db, counting{recorder, done})
	s, err := subscriber.New(store, subscriber.Config{
		Worker: "bench-" + strconv.Itoa(os.Getpid()), Concurrency: slots, LaneConcurrency: slots, Lease: 30 * time.Second,
		Poll: 50 * time.Millisecond, Grace: 10 * time.Second, Logger: logger,
	})
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(logger))
	if err != nil {
		return fmt.Errorf("make the router: %w", err)
	}
	router.AddMiddleware(settle, middleware.Recoverer)
	router.AddConsumerHandler(events.MediaDeletedType, events.MediaDeletedType, s, func(msg *message.Message) error {
		ctx, cancel := context.WithTimeout(msg.Context(), 10*time.Minute)
		defer cancel()
		d, _ := outbox.DeliveryFrom(ctx)
		if _, err := d.Event.Parse(); err != nil {
			return err
		}
		handle(d.Event.Media())
		return nil
	})

	// As in a worker, the router outlives what it carries.
	routing, stopRouting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRouting()
	routed := make(chan error, 1)
	go func() { routed <- router.Run(routing) }()
	select {
	case <-router.Running():
	case err := <-routed:
		return fmt.Errorf("start the router: %w", err)
	}
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		subscriber.Listen(ctx, url, db.Schema, s.Wake, logger)
	}()
	err = s.Run(ctx)
	<-listened
	return errors.Join(err, router.Close(), <-routed)
}

func settle(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d, ok := outbox.DeliveryFrom(msg.Context())
		if !ok {
			return nil, errors.New("the message didn't come from the outbox")
		}
		if _, err := next(msg); err != nil {
			return nil, err
		}
		d.Settle(outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done})
		return nil, nil
	}
}
