package outbox_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// publishWhenAssigned has the CMS publish an event of another media in the moment
// in which one of that media is assigned: a look that is under way misses it.
func (w *world) publishWhenAssigned(media string) {
	w.t.Helper()
	insert := `INSERT INTO {outbox} (event_id, type, service_id, data) VALUES
		('0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10', 'MediaDeleted', 'S1', '{"media_id":"late","file_name":"l","version":"2026-01-02T03:04:05Z"}')`
	if w.db.Dialect == database.SQLite {
		w.exec(`CREATE TRIGGER late AFTER UPDATE OF lane_id ON {outbox}
			WHEN old.lane_id IS NULL AND new.media_id = '` + media + `' BEGIN ` + insert + `; END`)
		return
	}
	w.exec(`CREATE FUNCTION {late}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + insert + `; RETURN NULL; END $$`)
	w.exec(`CREATE TRIGGER late AFTER UPDATE OF lane_id ON {outbox} FOR EACH ROW
		WHEN (old.lane_id IS NULL AND new.media_id = '` + media + `') EXECUTE FUNCTION {late}()`)
}

func TestDiscardingGoesOnWhileTheCMSPublishes(t *testing.T) {
	each(t, func(w *world) {
		w.publish("S1", touch("early"))
		w.publishWhenAssigned("early")
		counts, err := w.store.Discard(w.t.Context(), outbox.Filter{ServiceID: "S1"}, outbox.Action{Actor: "test", Reason: "test"})
		if err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(outbox.Counts{Matched: 2, Changed: 1, Skipped: 1}, counts); diff != "" {
			w.t.Errorf("counts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"discarded", "available"}, all[string](w, `SELECT state FROM {outbox} ORDER BY sequence`)); diff != "" {
			w.t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}
