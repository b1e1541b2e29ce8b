package events_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func dialect(db *database.DB) events.PublisherOptions {
	if db.Dialect == database.SQLite {
		return sqlite
	}
	return events.PublisherOptions{Dialect: events.PostgreSQL, Schema: db.Schema}
}

func TestPublishingOnTheRealOutbox(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		tx, err := db.BeginTxx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		publisher := mustPublisher(t, tx, dialect(db))
		var invalid *events.InvalidError
		if _, err := publisher.Publish(t.Context(), deletion(firstID, "")); !errors.As(err, &invalid) {
			t.Fatal(err)
		}
		odd := deletion(firstID, "m1")
		odd.Metadata = map[string]string{"odd": "\x00 <\u2028> が"}
		for _, want := range []events.Result{
			{EventIDs: []string{firstID, secondID}, Inserted: 2},
			{EventIDs: []string{firstID, secondID}, Duplicates: 2},
		} {
			result, err := publisher.Publish(t.Context(), odd, deletion(secondID, "m2"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, result); diff != "" {
				t.Error(diff)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}

		table := "outbox"
		if db.Schema != "" {
			table = db.Schema + ".outbox"
		}
		var stored []struct{ Data, Metadata []byte }
		if err := db.SelectContext(t.Context(), &stored, "SELECT data, metadata FROM "+table+" ORDER BY sequence"); err != nil {
			t.Fatal(err)
		}
		if len(stored) != 2 {
			t.Fatalf("%d events in the outbox", len(stored))
		}
		event, err := events.Parse(events.MediaDeletedType, service, "", stored[0].Data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(odd.Event, event); diff != "" {
			t.Error(diff)
		}
		var metadata map[string]string
		if err := json.Unmarshal(stored[0].Metadata, &metadata); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(odd.Metadata, metadata); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPgxTransactionsPublish(t *testing.T) {
	t.Parallel()
	ctx := context.Background() // t.Context() is done before the connection is closed
	conn, err := pgx.Connect(ctx, dbtest.PostgreSQLURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		publisher := mustPublisher(t, events.FromPgx(tx), events.PublisherOptions{Dialect: events.PostgreSQL})
		result, err := publisher.Publish(ctx, deletion(firstID, "m1"), deletion(firstID, "m1"))
		if result.Inserted != 1 || result.Duplicates != 1 {
			t.Errorf("%+v", result)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var count int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM ownbucket.outbox").Scan(&count); err != nil || count != 1 {
		t.Error(count, err)
	}
}
