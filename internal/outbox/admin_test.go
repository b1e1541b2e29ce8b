package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// publishWhenDiscarded has the CMS publish an event in each moment in which one of
// that service is discarded.
func (w *world) publishWhenDiscarded(service string) {
	w.t.Helper()
	insert := func(id string) string {
		return `INSERT INTO {outbox} (event_id, type, service_id, data) VALUES
			(` + id + `, 'MediaDeleted', '` + service + `', '{"media_id":"late","file_name":"l","version":"2026-01-02T03:04:05Z"}')`
	}
	if w.db.Dialect == database.SQLite {
		w.exec(`CREATE TRIGGER late AFTER UPDATE OF state ON {outbox} WHEN new.state = 'discarded'
			BEGIN ` + insert(w.uuidOf("new.sequence")) + `; END`)
		return
	}
	w.exec(`CREATE FUNCTION {late}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + insert("gen_random_uuid()") + `; RETURN NULL; END $$`)
	w.exec(`CREATE TRIGGER late AFTER UPDATE OF state ON {outbox} FOR EACH ROW
		WHEN (new.state = 'discarded') EXECUTE FUNCTION {late}()`)
}

// An action is about what was there when it began, so it comes to an end.
func TestDiscardingEndsWhileTheCMSPublishes(t *testing.T) {
	each(t, func(w *world) {
		w.publish("S1", touch("early"))
		w.publishWhenDiscarded("S1")
		ctx, cancel := contextWithTimeout(w.t, 10*time.Second)
		defer cancel()
		counts, err := w.store.Discard(ctx, outbox.Filter{ServiceID: "S1"}, outbox.Action{Actor: "test", Reason: "test"})
		if err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(outbox.Counts{Matched: 1, Changed: 1}, counts); diff != "" {
			w.t.Errorf("counts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"discarded", "available"}, all[string](w, `SELECT state FROM {outbox} ORDER BY sequence`)); diff != "" {
			w.t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}
