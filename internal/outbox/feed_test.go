package outbox_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

func TestEventsAreReadInTheirSequence(t *testing.T) {
	each(t, func(w *world) {
		want := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("a"))
		other := w.PublishIn("s", "dev", outboxtest.Touch("a"))
		w.Want()
		lanes := w.Claim("w")
		if len(lanes) != 2 {
			t := w.T
			t.Fatalf("%d lanes, want one for each environment", len(lanes))
		}
		for _, lane := range lanes {
			expected := want
			if lane.EnvironmentID == "dev" {
				expected = other
			}
			if diff := cmp.Diff(expected, outboxtest.Sequences(w.Read(lane.LaneID))); diff != "" {
				w.T.Error(diff)
			}
		}
	})
}

// An event's row is written once after it was published, when the event ends.
func TestAnEventIsWrittenWhenItEnds(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		found := w.Read(lane.LaneID)
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE lane_id IS NOT NULL`); n > 0 {
			w.T.Fatalf("%d events were written before they ended", n)
		}
		w.SettleEvent(lane, found[0], outboxtest.Done)
		w.SettleEvent(lane, found[1], outboxtest.RetryIn(time.Hour))
		if diff := cmp.Diff([]string{"completed done", "retryable server_error"}, []string{w.State(list[0]), w.State(list[1])}); diff != "" {
			w.T.Error(diff)
		}
		type row struct {
			Lane    int64   `db:"lane_id"`
			Media   string  `db:"media_id"`
			Version int64   `db:"version"`
			Order   *string `db:"resources"`
		}
		var got []row
		if err := w.DB.SelectContext(w.T.Context(), &got, w.DB.SQL(`
			SELECT lane_id, media_id, version, resources FROM {outbox} ORDER BY sequence`)); err != nil {
			w.T.Fatal(err)
		}
		const version = 1_750_000_000_000_000
		want := []row{{lane.LaneID, "a", version, nil}, {lane.LaneID, "b", version, ref(`["m:b","n:of b"]`)}}
		if diff := cmp.Diff(want, got); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestAnEventIDCountsOnce(t *testing.T) {
	each(t, func(w *world) {
		const insert = `INSERT INTO {outbox} (event_id, type, service_id, environment_id, data)
			VALUES ('0190a0a0-0000-7000-8000-000000000001', 'MediaDeleted', 's', '', '{}') ON CONFLICT (event_id) DO NOTHING`
		w.Exec(insert)
		w.Exec(insert)
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox}`); n != 1 {
			w.T.Errorf("%d events", n)
		}
	})
}

func TestLongAndOddNamesOrderEvents(t *testing.T) {
	each(t, func(w *world) {
		for _, name := range []string{strings.Repeat("名", 341), `"x"`, "'; DROP TABLE outbox; --", "🎉 +%25", "*"} {
			w.Publish("s", outboxtest.Touch(name[:min(len(name), 510)], name, "b"))
		}
		// The resource of an event for everything is no file name.
		lane := w.ClaimOne("w")
		found := w.Read(lane.LaneID)
		for _, e := range found {
			if _, err := e.Parse(); err != nil {
				w.T.Errorf("event %d is not understood: %v", e.Sequence, err)
			}
		}
		w.SettleEvent(lane, found[len(found)-1], outboxtest.RetryIn(time.Hour))
		other := w.Publish("s", outboxtest.Touch("other"))[0]
		if parked := w.Park(lane, nil, w.Event(lane.LaneID, other)); len(parked) > 0 {
			w.T.Errorf("an event of another media waits for one whose name is *")
		}
	})
}

func TestALaneSleepsUntilItGetsEvents(t *testing.T) {
	each(t, func(w *world) {
		dead := w.InsertRaw(w.DB, "s", "", "MediaDeleted", `{}`)
		w.Exec(`UPDATE {outbox} SET state = 'dead', finished_at = 1 WHERE sequence = ?`, dead)
		w.Want()
		if lanes := w.Claim("w"); len(lanes) > 0 {
			w.T.Errorf("claimed %d lanes without work", len(lanes))
		}
	})
}

// wanted are the lanes that have something to read, whoever saw it published.
func (w *world) wanted() []outbox.Environment {
	w.T.Helper()
	found, err := w.Store.Scan(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	slices.SortFunc(found, func(a, b outbox.Environment) int {
		return strings.Compare(a.ServiceID+" "+a.EnvironmentID, b.ServiceID+" "+b.EnvironmentID)
	})
	return found
}

func TestAScanFindsEachLaneThatHasSomethingToRead(t *testing.T) {
	each(t, func(w *world) {
		if found := w.wanted(); len(found) > 0 {
			w.T.Errorf("found %v in an empty outbox", found)
		}
		list := w.Publish("a", outboxtest.Touch("x"), outboxtest.Touch("y"))
		w.PublishIn("a", "dev", outboxtest.Touch("x"))
		lane := w.claimOneOf("a", "")
		w.Publish("b", outboxtest.Touch("x"))
		for _, sequence := range list {
			w.Settle(lane, sequence, outboxtest.Done)
		}
		parked := w.Publish("c", outboxtest.Touch("x"))[0]
		w.Settle(w.claimOneOf("c", ""), parked, outboxtest.RetryIn(time.Hour))
		want := []outbox.Environment{{ServiceID: "a", EnvironmentID: "dev"}, {ServiceID: "b"}}
		if diff := cmp.Diff(want, w.wanted()); diff != "" {
			w.T.Error(diff)
		}
		w.Promote()
		if diff := cmp.Diff(append(want, outbox.Environment{ServiceID: "c"}), w.wanted()); diff != "" {
			w.T.Errorf("after the retry is due: %s", diff)
		}
	})
}

// claimOneOf leases the lane of an environment, and gives all others back.
func (w *world) claimOneOf(service, environment string) outbox.Lane {
	w.T.Helper()
	w.Want()
	lanes := w.Claim("w")
	at := slices.IndexFunc(lanes, func(l outbox.Lane) bool { return l.ServiceID == service && l.EnvironmentID == environment })
	if at < 0 {
		w.T.Fatalf("claimed %v, which isn't environment %q of service %s", lanes, environment, service)
	}
	var others []outbox.Holding
	for i, lane := range lanes {
		if i != at {
			others = append(others, outboxtest.HoldingOf(lane))
		}
	}
	if err := w.Store.Release(w.T.Context(), others); err != nil {
		w.T.Fatal(err)
	}
	return lanes[at]
}

// A reading gives nothing out that its worker has not seen: what comes before it may
// not have been read.
func TestALaneIsReadUpToWhatWasSeen(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("c"))
		w.Want()
		lane := w.Claim("w")[0]
		found, err := w.Store.Read(w.T.Context(), []outbox.Reading{{LaneID: lane.LaneID, UpTo: list[1], Limit: 9}})
		if err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(list[:2], outboxtest.Sequences(found)); diff != "" {
			w.T.Error(diff)
		}
	})
}

// A lane that another transaction has locked, a snapshot perhaps, is left for later:
// nobody else's events wait for it.
func TestWantingALockedLaneDelaysNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	for _, service := range []string{"locked", "free"} {
		w.Exec(`INSERT INTO {lanes} (service_id, environment_id) VALUES (?, '')`, service)
	}
	lanes := []outbox.Environment{{ServiceID: "locked"}, {ServiceID: "free"}, {ServiceID: "new"}}
	tx := w.Begin()
	if _, err := tx.ExecContext(t.Context(), w.DB.SQL(`SELECT 1 FROM {lanes} WHERE service_id = 'locked' FOR UPDATE`)); err != nil {
		t.Fatal(err)
	}
	ready := func() []string {
		return outboxtest.All[string](w.World, `SELECT service_id FROM {lanes} WHERE ready_at IS NOT NULL ORDER BY service_id`)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	left, err := w.Store.Want(ctx, "w", lanes)
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
	if left, err := w.Store.Want(ctx, "w", left); err != nil || len(left) > 0 {
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
			w.Exec(`INSERT INTO {lanes} (service_id, environment_id, leased_by, leased_until) VALUES (?, '', ?, {now} + 1000000000)`, name, worker)
		}
		if left, err := w.Store.Want(w.T.Context(), "w", []outbox.Environment{{ServiceID: "its own"}, {ServiceID: "another's"}}); err != nil || len(left) > 0 {
			w.T.Fatal(left, err)
		}
		got := outboxtest.All[string](w.World, `SELECT service_id FROM {lanes} WHERE ready_at IS NOT NULL`)
		if diff := cmp.Diff([]string{"its own"}, got); diff != "" {
			w.T.Error(diff)
		}
	})
}
