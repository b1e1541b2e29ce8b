package subscriber_test

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// noRecorder is for events that leave nothing behind but their own end.
type noRecorder struct{}

func (noRecorder) Record(context.Context, *sqlx.Tx, []*outbox.Settlement, map[int64]int64) error {
	return nil
}

func (noRecorder) RecordDiscarded(context.Context, *sqlx.Tx, []*outbox.Event, map[int64]bool) error {
	return nil
}

// BenchmarkConsume measures how fast one subscriber takes events that wait,
// with handlers that do nothing: what the outbox itself costs.
func BenchmarkConsume(b *testing.B) {
	for _, lanes := range []int{1, 1000} {
		b.Run("PostgreSQL/lanes="+strconv.Itoa(lanes), func(b *testing.B) { consume(b, dbtest.PostgreSQL(b), lanes) })
		b.Run("SQLite/lanes="+strconv.Itoa(lanes), func(b *testing.B) { consume(b, dbtest.SQLite(b), lanes) })
	}
}

func consume(b *testing.B, db *database.DB, lanes int) {
	const batch = 2000
	dialect := events.PostgreSQL
	if db.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(db, events.PublisherOptions{Dialect: dialect, Schema: db.Schema})
	if err != nil {
		b.Fatal(err)
	}
	list := make([]events.Envelope, 0, batch)
	for i := range b.N {
		media := strconv.Itoa(i)
		list = append(list, events.Envelope{ServiceID: "S" + strconv.Itoa(i%lanes), Event: events.MediaDeleted{
			MediaID: media, FileName: media, Version: events.NewVersion(time.Unix(int64(i), 0)),
		}})
		if len(list) == batch || i == b.N-1 {
			if _, err := publisher.Publish(b.Context(), list...); err != nil {
				b.Fatal(err)
			}
			list = list[:0]
		}
	}

	store := outbox.New(db, noRecorder{})
	subscriber, err := subscriber.New(store, subscriber.Config{
		Worker: "bench", Concurrency: 64, LaneConcurrency: 64, Lease: 30 * time.Second,
		Poll: 50 * time.Millisecond, Grace: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	messages, err := subscriber.Subscribe(ctx, events.MediaDeletedType)
	if err != nil {
		b.Fatal(err)
	}
	var handled atomic.Int64
	b.ResetTimer()
	stopped := make(chan error, 1)
	go func() { stopped <- subscriber.Run(ctx) }()
	for handled.Load() < int64(b.N) {
		msg := <-messages
		handled.Add(1)
		d, _ := outbox.DeliveryFrom(msg.Context())
		d.Settle(outbox.Verdict{Kind: outbox.Complete, Outcome: outbox.Done})
		msg.Ack()
	}
	stop()
	if err := <-stopped; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
