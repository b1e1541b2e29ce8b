package events_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	_ "modernc.org/sqlite"

	"github.com/ownbucket/ownbucket/events"
)

// outboxTable is as much of the outbox as publishing needs.
const outboxTable = `CREATE TABLE outbox (
	sequence       INTEGER PRIMARY KEY AUTOINCREMENT,
	event_id       TEXT NOT NULL UNIQUE,
	type           TEXT NOT NULL,
	service_id     TEXT NOT NULL,
	environment_id TEXT NOT NULL DEFAULT '',
	data           TEXT NOT NULL CHECK (json_valid(data)),
	metadata       TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metadata))
)`

var sqlite = events.PublisherOptions{Dialect: events.SQLite}

func openOutbox(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "outbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.ExecContext(t.Context(), outboxTable); err != nil {
		t.Fatal(err)
	}
	return db
}

type row struct{ EventID, Type, ServiceID, EnvironmentID, Data, Metadata string }

func outboxRows(t *testing.T, db *sql.DB) (rows []row) {
	t.Helper()
	result, err := db.QueryContext(t.Context(),
		"SELECT event_id, type, service_id, environment_id, data, metadata FROM outbox ORDER BY sequence")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	for result.Next() {
		var r row
		if err := result.Scan(&r.EventID, &r.Type, &r.ServiceID, &r.EnvironmentID, &r.Data, &r.Metadata); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r)
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func mustPublisher(t *testing.T, tx events.Executor, options events.PublisherOptions) *events.Publisher {
	t.Helper()
	publisher, err := events.NewPublisher(tx, options)
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

func deletion(id, media string) events.Envelope {
	return events.Envelope{EventID: id, ServiceID: service, Event: events.MediaDeleted{
		MediaID: media, FileName: "a <b>.png", Version: events.NewVersion(fixedTime),
	}}
}

const (
	firstID  = "0198a1b2-0000-7000-8000-000000000001"
	secondID = "0198a1b2-0000-7000-8000-00000000abcd"
)

func TestPublishedRowsAreWhatParseReads(t *testing.T) {
	t.Parallel()
	db := openOutbox(t)
	spanContext := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	})
	metadata := map[string]string{"request": "r\x00 1"}
	environmentDeleted := events.Envelope{
		EventID: strings.ToUpper(secondID), ServiceID: service, EnvironmentID: environment,
		Event: events.EnvironmentDeleted{}, Metadata: metadata,
	}
	published, err := mustPublisher(t, db, sqlite).Publish(
		trace.ContextWithSpanContext(t.Context(), spanContext), deletion(firstID, "m1"), environmentDeleted)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(events.Result{EventIDs: []string{firstID, secondID}, Inserted: 2}, published); diff != "" {
		t.Error(diff)
	}
	if len(metadata) != 1 {
		t.Errorf("the caller's metadata was changed: %v", metadata)
	}

	const traceParent = "00-01000000000000000000000000000000-0200000000000000-01"
	rows := outboxRows(t, db)
	want := []row{
		{firstID, events.MediaDeletedType, service, "", rows[0].Data, `{"traceparent":"` + traceParent + `"}`},
		{secondID, events.EnvironmentDeletedType, service, environment, "{}", `{"request":"r\u0000 1","traceparent":"` + traceParent + `"}`},
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Error(diff)
	}
	event, err := events.Parse(rows[0].Type, rows[0].ServiceID, rows[0].EnvironmentID, []byte(rows[0].Data))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(deletion(firstID, "m1").Event, event); diff != "" {
		t.Error(diff)
	}
}

func TestPublishingAgainChangesNothing(t *testing.T) {
	t.Parallel()
	db := openOutbox(t)
	publisher := mustPublisher(t, db, sqlite)
	if _, err := publisher.Publish(t.Context(), deletion(firstID, "m1")); err != nil {
		t.Fatal(err)
	}
	published, err := publisher.Publish(t.Context(),
		deletion(strings.ToUpper(firstID), "other"), deletion(secondID, "m2"), deletion(secondID, "m3"))
	if err != nil {
		t.Fatal(err)
	}
	want := events.Result{EventIDs: []string{firstID, secondID, secondID}, Inserted: 1, Duplicates: 2}
	if diff := cmp.Diff(want, published); diff != "" {
		t.Error(diff)
	}
	again, err := publisher.Publish(t.Context(), deletion(firstID, "m1"))
	if err != nil || again.Inserted != 0 || again.Duplicates != 1 {
		t.Errorf("%+v, %v", again, err)
	}
	if rows := outboxRows(t, db); len(rows) != 2 || !strings.Contains(rows[0].Data, `"m1"`) || !strings.Contains(rows[1].Data, `"m2"`) {
		t.Errorf("%+v", rows)
	}
}

func TestPublishIsPartOfTheCallersTransaction(t *testing.T) {
	t.Parallel()
	db := openOutbox(t)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mustPublisher(t, tx, sqlite).Publish(t.Context(), deletion("", "m1")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if rows := outboxRows(t, db); len(rows) != 0 {
		t.Errorf("published although rolled back: %+v", rows)
	}
}

func TestManyEventsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	db := openOutbox(t)
	envelopes := make([]events.Envelope, 12_000)
	for i := range envelopes {
		envelopes[i] = deletion("", fmt.Sprint("m", i))
	}
	published, err := mustPublisher(t, db, sqlite).Publish(t.Context(), envelopes...)
	if err != nil || published.Inserted != len(envelopes) {
		t.Fatal(published.Inserted, err)
	}
	for i, r := range outboxRows(t, db) {
		if r.EventID != published.EventIDs[i] || !strings.Contains(r.Data, fmt.Sprintf(`"m%d"`, i)) {
			t.Fatalf("row %d is %+v", i, r)
		}
	}
}

// recorder is an Executor that only remembers.
type recorder struct{ queries []string }

func (r *recorder) ExecContext(_ context.Context, query string, _ ...any) (sql.Result, error) {
	r.queries = append(r.queries, query)
	return rowsAffected(1), nil
}

type rowsAffected int64

func (n rowsAffected) RowsAffected() (int64, error) { return int64(n), nil }
func (rowsAffected) LastInsertId() (int64, error)   { return 0, nil }

func TestOneInvalidEventKeepsPublishFromTouchingTheDatabase(t *testing.T) {
	t.Parallel()
	valid := deletion(firstID, "m1")
	tests := map[string]func(*events.Envelope){
		"type":           func(e *events.Envelope) { e.Event = nil },
		"event_id":       func(e *events.Envelope) { e.EventID = "{" + firstID + "}" },
		"service_id":     func(e *events.Envelope) { e.ServiceID = "" },
		"environment_id": func(e *events.Envelope) { e.EnvironmentID = "a\nb" },
		"metadata":       func(e *events.Envelope) { e.Metadata = map[string]string{"ownbucket-type": "x"} },
		"media_id":       func(e *events.Envelope) { e.Event = events.MediaDeleted{} },
		"version":        func(e *events.Envelope) { e.Event = events.MediaDeleted{MediaID: "m", FileName: "a"} },
		"file_name":      func(e *events.Envelope) { e.Event = events.MediaDeleted{MediaID: "m", FileName: "\xff"} },
	}
	for field, spoil := range tests {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			invalidEnvelope := valid
			spoil(&invalidEnvelope)
			database := new(recorder)
			_, err := mustPublisher(t, database, sqlite).Publish(t.Context(), valid, invalidEnvelope)
			var invalid *events.InvalidError
			if !errors.As(err, &invalid) || invalid.Field != field || !strings.Contains(err.Error(), "event 2 of 2") {
				t.Error(err)
			}
			if len(database.queries) != 0 {
				t.Errorf("ran %q", database.queries)
			}
		})
	}
}

func TestThePostgreSQLStatementIsTheContract(t *testing.T) {
	t.Parallel()
	tests := []struct{ schema, table string }{{"", `"ownbucket".outbox`}, {"cms_media", `"cms_media".outbox`}}
	for _, test := range tests {
		database := new(recorder)
		publisher := mustPublisher(t, database, events.PublisherOptions{Dialect: events.PostgreSQL, Schema: test.schema})
		if _, err := publisher.Publish(t.Context(), deletion("", "m1"), deletion("", "m2")); err != nil {
			t.Fatal(err)
		}
		want := []string{"INSERT INTO " + test.table + " (event_id, type, service_id, environment_id, data, metadata)" +
			" VALUES ($1, $2, $3, $4, $5, $6), ($7, $8, $9, $10, $11, $12) ON CONFLICT (event_id) DO NOTHING"}
		if diff := cmp.Diff(want, database.queries); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNewPublisherRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		tx      events.Executor
		options events.PublisherOptions
	}{
		"no transaction": {nil, sqlite},
		"no dialect":     {new(recorder), events.PublisherOptions{}},
		"schema":         {new(recorder), events.PublisherOptions{Dialect: events.PostgreSQL, Schema: `a"; DROP SCHEMA b`}},
	}
	for name, test := range tests {
		if _, err := events.NewPublisher(test.tx, test.options); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPublishingNothingDoesNothing(t *testing.T) {
	t.Parallel()
	database := new(recorder)
	published, err := mustPublisher(t, database, sqlite).Publish(t.Context())
	if err != nil || len(published.EventIDs) != 0 || len(database.queries) != 0 {
		t.Error(published, database.queries, err)
	}
	if data, err := json.Marshal(published.EventIDs); err != nil || string(data) != "[]" {
		t.Errorf("%s, %v", data, err)
	}
}
