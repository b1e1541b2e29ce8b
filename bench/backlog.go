package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	environments "github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

func backlogScenarios() []scenario {
	return []scenario{{"backlog/bytes", backlogBytes}, {"backlog/vacuum", vacuumKeepsUp}}
}

// realistic is the contract's INSERT as a CMS would make it; every media has
// as many uploads.
const realistic = `
	INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
	SELECT gen_random_uuid(), 'MediaUploaded', 'service-' || i % 16, '', json_build_object(
		'media_id', 'media-' || substr(md5(CAST(i / ? AS text)), 1, 20),
		'file_name', 'header-photo-2026-' || i / ? || '.jpg', 'content_type', 'image/jpeg', 'size', 482113 + i,
		'checksum_sha256', md5(CAST(i AS text)) || md5(CAST(-i AS text)),
		'source', 's3://cms-staging/uploads/2026/11/' || gen_random_uuid() || '/header-photo.jpg',
		'version', '2026-11-24T02:03:04.567Z')
	FROM generate_series(16, CAST(? AS bigint) + 15) AS i`

// backlogBytes is what events take in the database in each state, packed, as a
// table is that vacuum keeps up with.
func backlogBytes(ctx context.Context, e *environment) ([]row, error) {
	n := pick(e.scale, 10_000, 100_000)
	db, url, err := e.database(ctx, "backlog")
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{
		`INSERT INTO {lanes} (service_id, environment_id) SELECT 'service-' || i, '' FROM generate_series(0, 15) AS i`,
		`VACUUM FULL`,
	} {
		if _, err := db.ExecContext(ctx, db.SQL(statement)); err != nil {
			return nil, fmt.Errorf("%s: %w", statement, err)
		}
	}
	m := &measuring{db: db, events: n}
	if m.empty, err = m.sizes(ctx); err != nil {
		return nil, err
	}
	if _, err := db.ExecContext(ctx, db.SQL(realistic), 1, 1, n); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	if err := m.row(ctx, "available, or held"); err != nil {
		return nil, err
	}
	if err := settleWith(ctx, db, url, stored, `SELECT NOT EXISTS (SELECT 1 FROM {outbox} WHERE finished_at IS NULL)`); err != nil {
		return nil, err
	}
	if err := m.row(ctx, "completed, with its media in the ledger"); err != nil {
		return nil, err
	}
	return m.rows, backlogParked(ctx, e, m)
}

// backlogParked adds what an event takes that waits behind one that is to be
// retried: a hundred uploads of each media do.
func backlogParked(ctx context.Context, e *environment, to *measuring) error {
	const each = 100
	db, url, err := e.database(ctx, "parked")
	if err != nil {
		return err
	}
	m := &measuring{db: db, events: to.events / 10}
	if m.empty, err = m.sizes(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, db.SQL(realistic), 16*each, 16*each, m.events); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	retry := func(*outbox.Delivery) outbox.Verdict {
		return outbox.Verdict{Kind: outbox.Retry, Delay: time.Hour, Failure: failure.New(failure.Transient, failure.ServerError, "S3 answered 500")}
	}
	if err := settleWith(ctx, db, url, retry, `SELECT NOT EXISTS (SELECT 1 FROM {outbox} WHERE NOT parked)`); err != nil {
		return err
	}
	err = m.row(ctx, "parked behind a retry")
	to.rows = append(to.rows, m.rows...)
	return err
}

// measuring sees how much the tables grow by that many events.
type measuring struct {
	db     *database.DB
	events int
	empty  map[string]int64
	rows   []row
}

func (m *measuring) row(ctx context.Context, state string) error {
	loose, err := m.sizes(ctx)
	if err != nil {
		return err
	}
	if _, err := m.db.ExecContext(ctx, `VACUUM FULL`); err != nil {
		return fmt.Errorf("pack the tables: %w", err)
	}
	packed, err := m.sizes(ctx)
	if err != nil {
		return err
	}
	each := func(sizes map[string]int64, table string) float64 {
		return float64(sizes[table]-m.empty[table]) / float64(m.events)
	}
	tables := slices.SortedFunc(maps.Keys(packed), func(a, b string) int { return cmp.Compare(each(packed, b), each(packed, a)) })
	var sum, sumLoose float64
	var parts []string
	for _, table := range tables {
		sum, sumLoose = sum+each(packed, table), sumLoose+each(loose, table)
		if each(packed, table) >= 1 {
			parts = append(parts, fmt.Sprintf("%s %.0f", table, each(packed, table)))
		}
	}
	m.rows = append(m.rows, row{Scenario: "backlog/bytes", Subject: state, Events: m.events, Figure: sum, Unit: "bytes/event",
		Limit: fmt.Sprintf("%s; %.0f before vacuum", strings.Join(parts, ", "), sumLoose)})
	return nil
}

// sizes are of our tables with their indexes.
func (m *measuring) sizes(ctx context.Context) (map[string]int64, error) {
	var list []struct {
		Name string
		Size int64
	}
	if err := m.db.SelectContext(ctx, &list, `
		SELECT relname AS name, pg_total_relation_size(oid) AS size FROM pg_class
		WHERE relkind = 'r' AND relnamespace = CAST($1 AS regnamespace)`, m.db.Schema); err != nil {
		return nil, fmt.Errorf("measure the tables: %w", err)
	}
	sizes := make(map[string]int64)
	for _, table := range list {
		sizes[table.Name] = table.Size
	}
	return sizes, nil
}

// stored is what a first upload ends with.
func stored(d *outbox.Delivery) outbox.Verdict {
	e := d.Event
	bucket, key := "customer-media-"+e.ServiceID, "media/"+e.EventID+".jpg"
	return outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done, Effects: ledger.Effects{Put: &ledger.Object{
		LaneID: e.LaneID, MediaID: e.Media(), Version: *e.Version, Sequence: e.Sequence, Bucket: &bucket, Key: &key,
		ContentType: "image/jpeg", Size: 482_113, ETag: "0123456789abcdef0123456789abcdef",
	}}}
}

// settleWith ends attempts of uploads as verdict says until the query answers
// true.
func settleWith(ctx context.Context, db *database.DB, url string, verdict func(*outbox.Delivery) outbox.Verdict, until string) (err error) {
	// A worker has connections of its own.
	own, err := database.Open(ctx, url, database.DefaultSchema)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	recorder := environments.New(own, ledger.New(own), integration.New(own), nil, environments.Options{})
	s, err := subscriber.New(outbox.New(own, recorder), subscriber.Config{
		Worker: "bench", Concurrency: slots, LaneConcurrency: slots, Lease: 30 * time.Second,
		Poll: 50 * time.Millisecond, Grace: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	messages, err := s.Subscribe(ctx, events.MediaUploadedType)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	var consuming sync.WaitGroup
	consuming.Go(func() {
		for msg := range messages {
			d, _ := outbox.DeliveryFrom(msg.Context())
			d.Settle(verdict(d))
			msg.Ack()
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(s.Run(running), s.Close()) }()

	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done && err == nil; {
		select {
		case <-tick.C:
			err = db.GetContext(ctx, &done, db.SQL(until))
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	stop()
	err = errors.Join(err, <-ended)
	consuming.Wait()
	return err
}
