package outbox_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// world is one outbox, with what these tests alone do to it.
type world struct{ *outboxtest.World }

func newWorld(t testing.TB, db *database.DB) *world { return &world{outboxtest.New(t, db)} }

// each runs a test on every database.
func each(t *testing.T, test func(w *world)) {
	t.Helper()
	outboxtest.Each(t, func(w *outboxtest.World) { test(&world{w}) })
}

func ref[T any](value T) *T { return &value }
