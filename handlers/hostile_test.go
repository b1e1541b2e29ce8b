package handlers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/migrations"
)

// hostileText draws what a text column may hold.
func hostileText(names ...string) *rapid.Generator[any] {
	return rapid.OneOf(
		rapid.Map(rapid.SampledFrom(append(names, "", "null", "NULL", "\n", "日本", strings.Repeat("x", 2000), "MediaMoved")), toAny[string]),
		rapid.Map(rapid.String(), toAny[string]),
	)
}

func toAny[T any](value T) any { return value }

// hostileJSON draws what a json column may hold, and some that it refuses.
func hostileJSON() *rapid.Generator[any] {
	fields := rapid.MapOf(rapid.SampledFrom([]string{"media_id", "file_name", "from", "to", "size", "version", "source", "content_type",
		"source_environment_id", "environment_service_id", "traceparent"}), rapid.SampledFrom([]string{`"m1"`, `"a.txt"`, `""`, `null`, `-1`,
		`1e999`, `"\u0000"`, `"\ud800"`, `[]`, `{"media_id": 1}`, `"2026-01-02T03:04:05Z"`, `"0000-01-01T00:00:00Z"`, `"file:x"`, `"https://u:p@h/x?y"`}))
	return rapid.OneOf(
		rapid.Map(fields, func(m map[string]string) any {
			parts := make([]string, 0, len(m))
			for name, value := range m {
				parts = append(parts, fmt.Sprintf("%q: %s", name, value))
			}
			return "{" + strings.Join(parts, ", ") + "}"
		}),
		rapid.Map(rapid.SampledFrom([]string{`null`, `7`, `"x"`, `[1]`, `{}`, strings.Repeat("[", 900) + strings.Repeat("]", 900)}), toAny[string]),
		rapid.Map(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, outbox.MaxEventSize - 100, outbox.MaxEventSize}), func(size int) any {
			return `{"media_id": "m1", "file_name": "a.txt", "version": "2026-01-02T03:04:05Z", "more": "` + strings.Repeat("x", size) + `"}`
		}),
	)
}

// hostileValue draws what SQLite takes in any column.
func hostileValue() *rapid.Generator[any] {
	return rapid.OneOf(
		rapid.Map(rapid.SampledFrom([]string{"available", "running", "retryable", "completed", "dead", "x", "2026-01-02 03:04:05", "1", "NULL", "9e99"}), toAny[string]),
		rapid.Map(rapid.SampledFrom([]int64{0, 1, 2, -1, math.MaxInt64, math.MaxInt64 - 1, math.MinInt64, 1 << 40}), toAny[int64]),
		rapid.Map(rapid.Float64(), toAny[float64]),
		rapid.Map(rapid.SliceOf(rapid.Byte()), toAny[[]byte]),
		rapid.Just[any](nil),
	)
}

// hostileRow draws a row with values in columns that the publisher's rights reach.
func hostileRow(t *rapid.T, dialect database.Dialect, all []string) map[string]any {
	row := map[string]any{
		"event_id": uuid.NewString(),
		"type": rapid.OneOf(hostileText("MediaUploaded", "MediaRenamed", "MediaDeleted", "EnvironmentCreated", "EnvironmentDeleted"),
			rapid.Map(rapid.SampledFrom([]string{"MediaUploaded", "MediaRenamed", "MediaDeleted", "EnvironmentCreated", "EnvironmentDeleted"}), toAny[string])).Draw(t, "type"),
		"service_id": hostileText("S2", "s1", "S1 ").Draw(t, "service_id"),
		"data":       hostileJSON().Draw(t, "data"),
	}
	if rapid.Bool().Draw(t, "in an environment") {
		row["environment_id"] = hostileText("dev").Draw(t, "environment_id")
	}
	if rapid.Bool().Draw(t, "with metadata") {
		row["metadata"] = hostileJSON().Draw(t, "metadata")
	}
	if dialect == database.SQLite {
		for _, column := range rapid.SliceOfN(rapid.SampledFrom(all), 0, 4).Draw(t, "columns") {
			row[column] = hostileValue().Draw(t, column)
		}
	}
	return row
}

func hostileRows(dialect database.Dialect, all []string) *rapid.Generator[[]map[string]any] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) map[string]any { return hostileRow(t, dialect, all) }), 1, 12)
}

// A publisher with no more than its rights, which publishes for other services than
// the healthy one, writes whatever it likes.
func TestNothingThatAPublisherWritesHurtsAnotherService(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		role := `"` + uuid.NewString() + `"`
		exec := func(query string) {
			t.Helper()
			if _, err := db.ExecContext(context.WithoutCancel(t.Context()), query); err != nil {
				t.Fatal(err)
			}
		}
		var all []string
		if db.Dialect == database.PostgreSQL {
			exec(`CREATE ROLE ` + role)
			t.Cleanup(func() { exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
			if err := migrations.GrantPublisher(t.Context(), db, strings.Trim(role, `"`)); err != nil {
				t.Fatal(err)
			}
		} else if err := db.SelectContext(t.Context(), &all, `SELECT name FROM pragma_table_info('outbox')`); err != nil {
			t.Fatal(err)
		}
		p := stage.New(t, db).Customer("S1", "customer-bucket", "media")
		store := outbox.New(db, nil)
		rounds, tried, published := 15, 0, 0
		if testing.Short() {
			rounds = 3
		}
		for round := range rounds {
			seed := rand.IntN(1 << 30)
			t.Log("seed", seed)
			media := fmt.Sprintf("m%d", round)
			healthy := []string{p.Publish(p.Upload(media, media+".txt", "one"))}
			for _, row := range hostileRows(db.Dialect, all).Example(seed) {
				var columns, places []string
				var values []any
				for column, value := range row {
					columns, places, values = append(columns, column), append(places, "?"), append(values, value)
				}
				insert := db.SQL(`INSERT INTO {outbox} (` + strings.Join(columns, `, `) + `) VALUES (` + strings.Join(places, `, `) + `)`)
				tried++
				// What the database refuses was not published.
				if err := db.Tx(t.Context(), func(tx *sqlx.Tx) error {
					if db.Dialect == database.PostgreSQL {
						if _, err := tx.ExecContext(t.Context(), `SET LOCAL ROLE `+role); err != nil {
							t.Fatal(err)
						}
					}
					_, err := tx.ExecContext(t.Context(), insert, values...)
					return err
				}); err == nil {
					published++
				}
			}
			healthy = append(healthy, p.Publish(p.Rename(media, media+".txt", media+"-b.txt")))
			p.Work()
			for _, id := range healthy {
				if got := p.Event(id).String(); got != "completed done" {
					t.Errorf("a healthy event is %s", got)
				}
			}
			list, err := store.List(t.Context(), outbox.Filter{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := json.Marshal(list); err != nil {
				t.Error(err)
			}
			if _, err := store.Stats(t.Context()); err != nil {
				t.Error(err)
			}
			for _, e := range list {
				ended := e.State == outbox.Completed || e.State == outbox.Dead || e.State == outbox.Discarded
				if !ended && e.ErrorCode != failure.UnknownType {
					t.Errorf("an event is left: %+v", e)
				}
				shown, err := store.Show(t.Context(), e.EventID)
				if err != nil {
					t.Error(err)
				}
				if _, err := json.Marshal(shown); err != nil {
					t.Error(err)
				}
			}
			if _, err := db.ExecContext(t.Context(), db.SQL(`DELETE FROM {outbox}`)); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d of %d hostile rows were published", published, tried)
		if published < tried/4 {
			t.Error("the database refuses nearly all of them")
		}
	})
}
