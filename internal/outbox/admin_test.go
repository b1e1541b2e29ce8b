package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

// publishWhenDiscarded has the CMS publish an event in each moment in which one of
// that service is discarded.
func (w *world) publishWhenDiscarded(service string) {
	w.T.Helper()
	insert := func(id string) string {
		return `INSERT INTO {outbox} (event_id, type, service_id, data) VALUES
			(` + id + `, 'MediaDeleted', '` + service + `', '{"media_id":"late","file_name":"l","version":"2026-01-02T03:04:05Z"}')`
	}
	if w.DB.Dialect == database.SQLite {
		w.Exec(`CREATE TRIGGER late AFTER UPDATE OF state ON {outbox} WHEN new.state = 'discarded'
			BEGIN ` + insert(w.UUIDOf("new.sequence")) + `; END`)
		return
	}
	w.Exec(`CREATE FUNCTION {late}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + insert("gen_random_uuid()") + `; RETURN NULL; END $$`)
	w.Exec(`CREATE TRIGGER late AFTER UPDATE OF state ON {outbox} FOR EACH ROW
		WHEN (new.state = 'discarded') EXECUTE FUNCTION {late}()`)
}

// An action is about what was there when it began, so it comes to an end.
func TestDiscardingEndsWhileTheCMSPublishes(t *testing.T) {
	each(t, func(w *world) {
		w.Publish("S1", outboxtest.Touch("early"))
		w.publishWhenDiscarded("S1")
		ctx, cancel := context.WithTimeout(w.T.Context(), 10*time.Second)
		defer cancel()
		counts, err := w.Store.Discard(ctx, outbox.Filter{ServiceID: "S1"}, outbox.Action{Actor: "test", Reason: "test"})
		if err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(outbox.Counts{Matched: 1, Changed: 1}, counts); diff != "" {
			w.T.Errorf("counts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"discarded", "available"}, outboxtest.All[string](w.World, `SELECT state FROM {outbox} ORDER BY sequence`)); diff != "" {
			w.T.Errorf("events (-want +got):\n%s", diff)
		}
	})
}
