package outbox_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func TestEventsAreReadInTheirSequence(t *testing.T) {
	each(t, func(w *world) {
		want := w.publish("s", touch("a"), touch("b"), touch("a"))
		other := w.publishIn("s", "dev", touch("a"))
		w.assign()
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

func TestAnEventThatCommitsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	early, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Rollback()
	first := w.insert(early, "s", "", touch("a"))
	rolledBack, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.insert(rolledBack, "s", "", touch("a"))
	third := w.publish("s", touch("a"))[0]

	lane := w.claimOne("w")
	if diff := cmp.Diff([]int64{third}, sequences(w.read(lane.LaneID))); diff != "" {
		t.Fatal(diff)
	}
	w.settle(lane, third, done)
	if err := rolledBack.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := early.Commit(); err != nil {
		t.Fatal(err)
	}
	fourth := w.publish("s", touch("a"))[0]
	w.await("the late event is assigned", func() bool {
		w.assign()
		return one[*int64](w, `SELECT lane_id FROM {outbox} WHERE sequence = ?`, first) != nil
	})
	// Its lane was read up to the third event.
	if diff := cmp.Diff([]int64{fourth, first}, sequences(w.readAfter(lane.LaneID, third))); diff != "" {
		t.Error(diff)
	}
}

// An event can stay invisible for longer than assigning usually looks back.
func TestAnEventThatCommitsSecondsLateIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	late, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback()
	first := w.insert(late, "s", "", touch("a"))
	began := time.Now()
	w.await("assigning has moved on for good", func() bool {
		w.publish("s", touch("b"))
		w.assign()
		return time.Since(began) > 1500*time.Millisecond
	})
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.await("the late event is assigned", func() bool {
		w.assign()
		return one[*int64](w, `SELECT lane_id FROM {outbox} WHERE sequence = ?`, first) != nil
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

func TestWhatCanNotBeUnderstoodIsDeadWithItsReason(t *testing.T) {
	each(t, func(w *world) {
		type row struct {
			State string  `db:"state"`
			Class string  `db:"error_class"`
			Code  string  `db:"error_code"`
			Error string  `db:"error"`
			Media *string `db:"media_id"`
		}
		media := "m"
		for _, test := range []struct {
			name, eventType, data, says string
			media                       *string
		}{
			{"unknown type", "MediaMoved", `{}`, "MediaMoved", nil},
			{"not an object", "MediaDeleted", `[1]`, "object", nil},
			{"NUL", "MediaDeleted", `{"media_id":"a\u0000b","file_name":"f","version":"2026-01-01T00:00:00Z"}`, "media_id", nil},
			{"lone surrogate", "MediaDeleted", `{"media_id":"m","file_name":"\ud800","version":"2026-01-01T00:00:00Z"}`, "surrogate", nil},
			{"no version", "MediaDeleted", `{"media_id":"m","file_name":"f"}`, "version", &media},
		} {
			sequence := w.insertRaw(w.db, "s", "", test.eventType, test.data)
			w.assign()
			var got row
			if err := w.db.GetContext(w.t.Context(), &got, w.db.SQL(`SELECT state, error_class, error_code, error, media_id
				FROM {outbox} WHERE sequence = ?`), sequence); err != nil {
				w.t.Fatal(err)
			}
			if !strings.Contains(got.Error, test.says) {
				w.t.Errorf("%s: the reason is %q, want it to name %s", test.name, got.Error, test.says)
			}
			got.Error = ""
			if diff := cmp.Diff(row{"dead", "permanent", "invalid_event", "", test.media}, got); diff != "" {
				w.t.Errorf("%s: %s", test.name, diff)
			}
		}
		good := w.publish("s", touch("m"))[0]
		lane := w.claimOne("w")
		if diff := cmp.Diff([]int64{good}, sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Error(diff)
		}
	})
}

// One bad row must not keep the events of everybody else from being assigned.
func TestNoNameOfAServiceStopsAssigning(t *testing.T) {
	each(t, func(w *world) {
		long := make([]byte, 20_000)
		for i := range long {
			long[i] = byte('!' + i*i*7919%90) // doesn't compress
		}
		names := []string{string(long), "", "\u0001", "\ufffe"}
		if w.db.Dialect == database.SQLite {
			names = append(names, "a\x00b", "\xff\xfe")
		}
		var bad []int64
		for _, name := range names {
			bad = append(bad, w.publish(name, touch("a"))...)
			bad = append(bad, w.publishIn("s", name+"\n", touch("a"))...)
		}
		good := w.publish("s", touch("a"))[0]
		w.assign()
		for _, sequence := range bad {
			if got := w.state(sequence); got != "dead invalid_event" {
				w.t.Errorf("event %d is %s", sequence, got)
			}
		}
		lane := w.claimOne("w")
		if diff := cmp.Diff([]int64{good}, sequences(w.read(lane.LaneID))); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestLongAndOddNamesOrderEvents(t *testing.T) {
	each(t, func(w *world) {
		for _, name := range []string{strings.Repeat("名", 341), `"x"`, "'; DROP TABLE outbox; --", "🎉 +%25", "*"} {
			w.publish("s", touch(name[:min(len(name), 510)], name, "b"))
		}
		w.assign()
		if n := one[int](w, `SELECT count(*) FROM {outbox} WHERE state <> 'available' OR lane_id IS NULL`); n > 0 {
			w.t.Fatal(w.dump())
		}
		// The resource of an event for everything is no file name.
		lane := w.claim("w")[0]
		found := w.read(lane.LaneID)
		w.settleEvent(lane, found[len(found)-1], retryIn(time.Hour))
		other := w.publish("s", touch("other"))[0]
		w.assign()
		if parked := w.park(lane, nil, w.event(lane.LaneID, other)); len(parked) > 0 {
			w.t.Errorf("an event of another media waits for one whose name is *")
		}
	})
}

func TestALaneSleepsUntilItGetsEvents(t *testing.T) {
	each(t, func(w *world) {
		w.insertRaw(w.db, "s", "", "MediaDeleted", `{}`)
		if done := w.assign(); len(done.Written) > 0 {
			w.t.Error("a dead event woke its lane")
		}
		if lanes := w.claim("w"); len(lanes) > 0 {
			w.t.Errorf("claimed %d lanes without work", len(lanes))
		}
	})
}

func TestTheSourceOfACopyWaitsForItsSnapshot(t *testing.T) {
	each(t, func(w *world) {
		before := w.publish("s", touch("a"))[0]
		created := w.publishIn("s", "dev", events.EnvironmentCreated{EnvironmentServiceID: "dev"})[0]
		after := w.publish("s", touch("b"))[0]
		if done := w.assign(); !done.Created {
			w.t.Error("nobody is told that a snapshot is due")
		}
		source := one[int64](w, `SELECT lane_id FROM {lanes} WHERE environment_id = ''`)
		if diff := cmp.Diff([]int64{before}, sequences(w.read(source))); diff != "" {
			w.t.Errorf("before the snapshot: %s", diff)
		}
		gate := w.status(source).Gate
		if gate == nil || *gate != created {
			w.t.Errorf("the gate is at %v, want %d", gate, created)
		}
		w.exec(`UPDATE {copies} SET state = 'planned'`)
		w.exec(`UPDATE {lanes} SET gate_sequence = NULL`)
		found := w.readAfter(source, before)
		if diff := cmp.Diff([]int64{after}, sequences(found)); diff != "" {
			w.t.Errorf("after the snapshot: %s", diff)
		}
		if len(found) > 0 && !found[0].Copying {
			w.t.Error("a later event doesn't know of the copy that is owed")
		}
	})
}
