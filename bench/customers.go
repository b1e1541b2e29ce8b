package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/worker"
)

// installation is Ownbucket as it runs for customers: a database with their
// settings, and workers with the real handlers.
type installation struct {
	db   *database.DB
	url  string
	aws  *standIn
	root string
}

func (e *environment) install(ctx context.Context, name string, aws *standIn, root string) (*installation, error) {
	db, url, err := e.database(ctx, name)
	return &installation{db, url, aws, root}, err
}

// addCustomers makes buckets name-0 to name-(n-1), and services of the same
// names that use them.
func (i *installation) addCustomers(ctx context.Context, name string, n int) error {
	buckets := make([]string, n)
	for k := range buckets {
		buckets[k] = fmt.Sprintf("%s-%d", name, k)
	}
	var made []awslocal.Customer
	if err := i.aws.call("AddCustomers", buckets, &made); err != nil {
		return err
	}
	settings := integration.New(i.db)
	for _, c := range made {
		if _, err := settings.Set(ctx, integration.Change{
			ServiceID: c.Bucket, Bucket: &c.Bucket, Region: &c.Region, RoleARN: &c.RoleARN, ExternalID: &c.ExternalID,
			Prefix: &c.Prefix, SkipTest: true, Reason: "a benchmark", Actor: "bench",
		}); err != nil {
			return err
		}
	}
	return nil
}

// upload is the contract's INSERT of uploads from..to, to included, spread
// over the services name-0 to name-(n-1).
const upload = `
	INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
	SELECT gen_random_uuid(), 'MediaUploaded', CAST(? AS text) || '-' || i % ?, '', json_build_object(
		'media_id', 'media-' || i, 'file_name', 'image-' || i || '.png', 'content_type', 'image/png',
		'size', CAST(? AS bigint), 'source', 'file:` + source + `', 'version', '2026-01-01T00:00:00Z')
	FROM generate_series(CAST(? AS bigint), CAST(? AS bigint)) AS i`

func (i *installation) publishUploads(ctx context.Context, name string, n int, size int64, from, to int) error {
	if _, err := i.db.ExecContext(ctx, i.db.SQL(upload), name, n, size, from, to); err != nil {
		return fmt.Errorf("publish uploads: %w", err)
	}
	return nil
}

// worker has a database handle of its own, as another process would; done
// closes it.
func (i *installation) worker(ctx context.Context, change func(*worker.Config)) (w *worker.Worker, done func() error, err error) {
	db, err := database.Open(ctx, i.url, database.DefaultSchema)
	if err != nil {
		return nil, nil, err
	}
	config := worker.Config{
		DB: db, DatabaseURL: i.url, Grace: time.Second, FileRoot: i.root, AWS: i.aws.config(),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	if change != nil {
		change(&config)
	}
	w, err = worker.New(ctx, config)
	return w, db.Close, err
}

// took is how long the events above a sequence took, from the first one's
// start to the last one's end. It fails unless all are done.
func (i *installation) took(ctx context.Context, above int64) (time.Duration, error) {
	var seen struct {
		Unfinished int    `db:"unfinished"`
		Error      string `db:"error"` // of one of these
		Micros     int64  `db:"micros"`
	}
	if err := i.db.GetContext(ctx, &seen, i.db.SQL(`
		SELECT count(*) FILTER (WHERE outcome IS DISTINCT FROM 'done') AS unfinished,
			coalesce(max(error), '') AS error, coalesce(max(finished_at) - min(started_at), 0) AS micros
		FROM {outbox} WHERE sequence > ?`), above); err != nil {
		return 0, fmt.Errorf("read how long it took: %w", err)
	}
	if seen.Unfinished > 0 {
		return 0, fmt.Errorf("%d events were not done: %s", seen.Unfinished, seen.Error)
	}
	return time.Duration(seen.Micros) * time.Microsecond, nil
}

// lastSequence is that of the newest event.
func (i *installation) lastSequence(ctx context.Context) (sequence int64, err error) {
	err = i.db.GetContext(ctx, &sequence, i.db.SQL(`SELECT coalesce(max(sequence), 0) FROM {outbox}`))
	return sequence, err
}
