package outbox_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

func TestEventsAreReadInTheirSequence(t *testing.T) {
	each(t, func(w *world) {
		want := w.publish("s", touch("a"), touch("b"), touch("a"))
		other := w.publishIn("s", "dev", touch("a"))
		w.want()
		lanes := w.claim("w")
		if len(lanes) != 2 {
			t := w.t
			t.Fatalf("%d lanes, want one for each environment", len(lanes))
		}
		for _, lane := range lanes {
			expected := want
			if lane.EnvironmentID == "dev" {
				expected = other
			}
			if diff := cmp.Diff(expected, sequences(w.read(lane.LaneID))); diff != "" {
				w.t.Error(diff)
			}
		}
	})
}

// An event's row is written once after it was published, when the event ends.
func TestAnEventIsWrittenWhenItEnds(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"))
		lane := w.claimOne("w")
		found := w.read(lane.LaneID)
		if n := one[int](w, `SELECT count(*) FROM {outbox} WHERE lane_id IS NOT NULL`); n > 0 {
			w.t.Fatalf("%d events were written before they ended", n)
		}
		w.settleEvent(lane, found[0], done)
		w.settleEvent(lane, found[1], retryIn(time.Hour))
		if diff := cmp.Diff([]string{"completed done", "retryable server_error"}, []string{w.state(list[0]), w.state(list[1])}); diff != "" {
			w.t.Error(diff)
		}
		type row struct {
			Lane    int64   `db:"lane_id"`
			Media   string  `db:"media_id"`
			Version int64   `db:"version"`
			Order   *string `db:"resources"`
		}
		var got []row
		if err := w.db.SelectContext(w.t.Context(), &got, w.db.SQL(`
			SELECT lane_id, media_id, version, resources FROM {outbox} ORDER BY sequence`)); err != nil {
			w.t.Fatal(err)
		}
		const version = 1_750_000_000_000_000
		want := []row{{lane.LaneID, "a", version, nil}, {lane.LaneID, "b", version, ref(`["m:b","n:of b"]`)}}
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestAnEventIDCountsOnce(t *testing.T) {
	each(t, func(w *world) {
		const insert = `INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
			VALUES ('0190a0a0-0000-7000-8000-000000000001', 'MediaDeleted', 's', '', '{}') ON CONFLICT (event_id) DO NOTHING`
		w.exec(insert)
		w.exec(insert)
		if n := one[int](w, `SELECT count(*) FROM {outbox}`); n != 1 {
			w.t.Errorf("%d events", n)
		}
	})
}

func TestLongAndOddNamesOrderEvents(t *testing.T) {
	each(t, func(w *world) {
		for _, name := range []string{strings.Repeat("名", 341), `"x"`, "'; DROP TABLE outbox; --", "🎉 +%25", "*"} {
			w.publish("s", touch(name[:min(len(name), 510)], name, "b"))
		}
		// The resource of an event for everything is no file name.
		lane := w.claimOne("w")
		found := w.read(lane.LaneID)
		for _, e := range found {
			if _, err := e.Parse(); err != nil {
				w.t.Errorf("event %d is not understood: %v", e.Sequence, err)
			}
		}
		w.settleEvent(lane, found[len(found)-1], retryIn(time.Hour))
		other := w.publish("s", touch("other"))[0]
		if parked := w.park(lane, nil, w.event(lane.LaneID, other)); len(parked) > 0 {
			w.t.Errorf("an event of another media waits for one whose name is *")
		}
	})
}

func TestALaneSleepsUntilItGetsEvents(t *testing.T) {
	each(t, func(w *world) {
		dead := w.insertRaw(w.db, "s", "", "MediaDeleted", `{}`)
		w.exec(`UPDATE {outbox} SET state = 'dead', finished_at = 1 WHERE sequence = ?`, dead)
		w.want()
		if lanes := w.claim("w"); len(lanes) > 0 {
			w.t.Errorf("claimed %d lanes without work", len(lanes))
		}
	})
}

// wanted are the lanes that have something to read, whoever saw it published.
func (w *world) wanted() []outbox.Environment {
	w.t.Helper()
	found, err := w.store.Scan(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b outbox.Environment) int {
		return strings.Compare(a.ServiceID+" "+a.EnvironmentID, b.ServiceID+" "+b.EnvironmentID)
	})
	return found
}

func TestAScanFindsEachLaneThatHasSomethingToRead(t *testing.T) {
	each(t, func(w *world) {
		if found := w.wanted(); len(found) > 0 {
			w.t.Errorf("found %v in an empty outbox", found)
		}
		list := w.publish("a", touch("x"), touch("y"))
		w.publishIn("a", "dev", touch("x"))
		lane := w.claimOneOf("a", "")
		w.publish("b", touch("x"))
		for _, sequence := range list {
			w.settle(lane, sequence, done)
		}
		parked := w.publish("c", touch("x"))[0]
		w.settle(w.claimOneOf("c", ""), parked, retryIn(time.Hour))
		want := []outbox.Environment{{ServiceID: "a", EnvironmentID: "dev"}, {ServiceID: "b"}}
		if diff := cmp.Diff(want, w.wanted()); diff != "" {
			w.t.Error(diff)
		}
		w.promote()
		if diff := cmp.Diff(append(want, outbox.Environment{ServiceID: "c"}), w.wanted()); diff != "" {
			w.t.Errorf("after the retry is due: %s", diff)
		}
	})
}

// claimOneOf leases the lane of an environment, and gives all others back.
func (w *world) claimOneOf(service, environment string) outbox.Lane {
	w.t.Helper()
	w.want()
	lanes := w.claim("w")
	at := slices.IndexFunc(lanes, func(l outbox.Lane) bool { return l.ServiceID == service && l.EnvironmentID == environment })
	if at < 0 {
		w.t.Fatalf("claimed %v, which isn't environment %q of service %s", lanes, environment, service)
	}
	var others []outbox.Holding
	for i, lane := range lanes {
		if i != at {
			others = append(others, holdingOf(lane))
		}
	}
	if err := w.store.Release(w.t.Context(), others); err != nil {
		w.t.Fatal(err)
	}
	return lanes[at]
}

// A worker may die after it gave a lane back, and before its next look. Others saw
// the event while it held the lane, and left it to it.
func TestALaneThatNobodyWantsIsFoundByAWorkerThatBegins(t *testing.T) {
	each(t, func(w *world) {
		first := w.publish("s", touch("a"))[0]
		lane := w.claimOne("dead")
		w.settle(lane, first, done)
		if err := w.store.Release(w.t.Context(), []outbox.Holding{holdingOf(lane)}); err != nil {
			w.t.Fatal(err)
		}
		event := w.publish("s", touch("a"))[0]
		if lanes := w.claim("other"); len(lanes) > 0 {
			w.t.Fatalf("claimed %v, which nobody wants", lanes)
		}
		start(w.t, w.another(), configured("w"), func(context.Context, *outbox.Delivery) *outbox.Verdict { return &done })
		w.await("it completes", func() bool { return w.state(event) == "completed done" })
	})
}

// So is an event whose lane nobody wants while workers run: all lanes are looked
// through now and then.
func TestAWorkerThatRunsFindsWhatNoLookSees(t *testing.T) {
	each(t, func(w *world) {
		h := newHands()
		worker := start(w.t, w.store, configured("w"), h.handle)
		w.runs(h, w.publish("s", touch("a"))[0], done)
		w.await("the lane is given back", func() bool {
			return one[bool](w, `SELECT NOT EXISTS (SELECT 1 FROM {lanes} WHERE leased_by IS NOT NULL)`)
		})
		unseen := w.publishEnded("s", touch("b"))
		w.await("the worker takes it for ended", func() bool { return worker.Knows(unseen) })
		w.exec(`UPDATE {outbox} SET state = 'available', finished_at = NULL WHERE sequence = ?`, unseen)
		w.runs(h, unseen, done)
	})
}

// publishEnded publishes an event that is discarded in the same transaction.
func (w *world) publishEnded(service string, e events.Event) int64 {
	w.t.Helper()
	tx := w.begin()
	sequence := w.insert(tx, service, "", e)
	if _, err := tx.ExecContext(w.t.Context(), w.db.SQL(`
		UPDATE {outbox} SET state = 'discarded', finished_at = {now} WHERE sequence = ?`), sequence); err != nil {
		w.t.Fatal(err)
	}
	w.commit(tx)
	return sequence
}

// A reading gives nothing out that its worker has not seen: what comes before it may
// not have been read.
func TestALaneIsReadUpToWhatWasSeen(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"), touch("c"))
		w.want()
		lane := w.claim("w")[0]
		found, err := w.store.Read(w.t.Context(), []outbox.Reading{{LaneID: lane.LaneID, UpTo: list[1], Limit: 9}})
		if err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(list[:2], sequences(found)); diff != "" {
			w.t.Error(diff)
		}
	})
}

// A lane that another transaction has locked, a snapshot perhaps, is left for later:
// nobody else's events wait for it.
func TestWantingALockedLaneDelaysNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	for _, service := range []string{"locked", "free"} {
		w.exec(`INSERT INTO {lanes} (service_id, environment_id) VALUES (?, '')`, service)
	}
	lanes := []outbox.Environment{{ServiceID: "locked"}, {ServiceID: "free"}, {ServiceID: "new"}}
	tx := w.begin()
	if _, err := tx.ExecContext(t.Context(), w.db.SQL(`SELECT 1 FROM {lanes} WHERE service_id = 'locked' FOR UPDATE`)); err != nil {
		t.Fatal(err)
	}
	ready := func() []string {
		return all[string](w, `SELECT service_id FROM {lanes} WHERE ready_at IS NOT NULL ORDER BY service_id`)
	}
	ctx, cancel := contextWithTimeout(t, 10*time.Second)
	defer cancel()
	left, err := w.store.Want(ctx, "w", lanes)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lanes[:1], left); diff != "" {
		t.Errorf("left for later: %s", diff)
	}
	if diff := cmp.Diff([]string{"free", "new"}, ready()); diff != "" {
		t.Errorf("ready while one is locked: %s", diff)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if left, err := w.store.Want(ctx, "w", left); err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
	if diff := cmp.Diff([]string{"free", "locked", "new"}, ready()); diff != "" {
		t.Errorf("ready afterwards: %s", diff)
	}
}

// A lane's holder looks for itself.
func TestWantingALaneThatAnotherWorkerHoldsChangesNothing(t *testing.T) {
	each(t, func(w *world) {
		for name, worker := range map[string]string{"its own": "w", "another's": "other"} {
			w.exec(`INSERT INTO {lanes} (service_id, environment_id, leased_by, leased_until) VALUES (?, '', ?, {now} + 1000000000)`, name, worker)
		}
		if left, err := w.store.Want(w.t.Context(), "w", []outbox.Environment{{ServiceID: "its own"}, {ServiceID: "another's"}}); err != nil || len(left) > 0 {
			w.t.Fatal(left, err)
		}
		got := all[string](w, `SELECT service_id FROM {lanes} WHERE ready_at IS NOT NULL`)
		if diff := cmp.Diff([]string{"its own"}, got); diff != "" {
			w.t.Error(diff)
		}
	})
}
