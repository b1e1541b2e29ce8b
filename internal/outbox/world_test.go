package outbox_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// world is one outbox, seen from outside.
type world struct{ *outboxtest.World }

func newWorld(t testing.TB, db *database.DB) *world { return &world{outboxtest.New(t, db)} }

// each runs a test on every database.
func each(t *testing.T, test func(w *world)) {
	t.Helper()
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) { test(newWorld(t, db)) })
}

// one reads a single value.
func one[T any](w *world, query string, args ...any) T {
	w.T.Helper()
	return outboxtest.One[T](w.World, query, args...)
}

// all reads a column.
func all[T any](w *world, query string, args ...any) []T {
	w.T.Helper()
	return outboxtest.All[T](w.World, query, args...)
}

func ref[T any](value T) *T { return &value }
