package outboxtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Dump tells what stands in the tables, for failures.
func (w *World) Dump() string {
	var text strings.Builder
	for _, table := range []string{
		`SELECT sequence, lane_id, media_id, resources, state, outcome, error_code, parked, requeued, holding,
			next_attempt_at, attempt_count, lapse_count FROM {outbox}
			WHERE state NOT IN ('completed', 'dead') ORDER BY sequence LIMIT 60`,
		`SELECT lane_id, service_id, held, wake, ready_at, read_from, lease_token, leased_by,
			leased_until, lapse_count, gate_sequence FROM {lanes} ORDER BY lane_id LIMIT 30`,
		`SELECT * FROM {holds} ORDER BY sequence, resource LIMIT 60`,
	} {
		if err := w.print(&text, table); err != nil {
			return err.Error()
		}
	}
	return text.String()
}

func (w *World) print(text *strings.Builder, query string) error {
	rows, err := w.DB.QueryxContext(context.WithoutCancel(w.T.Context()), w.DB.SQL(query)) //nolint:sqlclosecheck // it is closed below
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		row := make(map[string]any)
		if err := rows.MapScan(row); err != nil {
			return err
		}
		fmt.Fprintln(text, row)
	}
	fmt.Fprintln(text)
	return rows.Err()
}

// AwaitBlocked waits until a session waits for a lock that another has.
func (w *World) AwaitBlocked(what string) {
	w.T.Helper()
	w.Await(what, func() bool {
		return One[bool](w, `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0)`)
	})
}

// Await polls until the condition holds.
func (w *World) Await(what string, holds func() bool) {
	w.T.Helper()
	Await(w.T, what, holds, w.Dump)
}

// Await is World.Await where there is no world.
func Await(t testing.TB, what string, holds func() bool, dump func() string) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for: %s\n%s", what, dump())
		}
		time.Sleep(2 * time.Millisecond)
	}
}
