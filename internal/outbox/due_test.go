package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

func TestARetryRunsWhenItsDelayIsOver(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"))
		lane := w.claimOne("w")
		w.settle(lane, list[0], retryIn(time.Hour))
		w.settle(lane, list[1], retryIn(-time.Second))
		lanes, more, err := w.store.Promote(w.t.Context())
		if err != nil || more || !cmp.Equal([]int64{lane.LaneID}, lanes) {
			w.t.Errorf("promoted lanes %v, more %t: %v", lanes, more, err)
		}
		// The lane was read past both.
		if diff := cmp.Diff([]int64{list[1]}, sequences(w.readAfter(lane.LaneID, list[1]))); diff != "" {
			w.t.Error(diff)
		}
		if got := w.state(list[0]); got != "retryable server_error" {
			w.t.Errorf("the other is %s", got)
		}
	})
}

func TestManyRetriesArePromotedInBatches(t *testing.T) {
	each(t, func(w *world) {
		for range 3 {
			w.publish("s", touch("a"))
		}
		w.want()
		w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, resources, state, parked, next_attempt_at)
			SELECT ` + w.uuidOf("n") + `, 'MediaDeleted', 's', '{}', 1, '[]', 'retryable', true, 1 FROM (` + w.series(1200) + `) AS s`)
		rounds := 0
		for more := true; more; rounds++ {
			var err error
			if _, more, err = w.store.Promote(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
		}
		if left := one[int](w, `SELECT count(*) FROM {outbox} WHERE parked`); left > 0 || rounds < 3 {
			w.t.Errorf("%d are left after %d rounds", left, rounds)
		}
	})
}

func TestOnlyOldCompletedAndDiscardedEventsArePruned(t *testing.T) {
	each(t, func(w *world) {
		const retention = 14 * 24 * time.Hour
		type kept struct {
			state              string
			created, finished  time.Duration // ago
			pruned, unfinished bool
		}
		cases := []kept{
			{state: "completed", created: retention + time.Hour, finished: retention + time.Hour, pruned: true},
			{state: "discarded", created: retention + time.Hour, finished: retention + time.Hour, pruned: true},
			{state: "dead", created: 10 * retention, finished: 10 * retention},
			{state: "completed", created: 10 * retention, finished: retention - time.Hour}, // ended late
			{state: "completed", created: retention - time.Hour, finished: time.Hour},
			{state: "available", created: 10 * retention, unfinished: true},
			{state: "retryable", created: 10 * retention, unfinished: true},
		}
		var list []int64
		for range cases {
			list = append(list, w.publish("s", touch("a"))...)
		}
		w.want()
		var want []int64
		for i, c := range cases {
			finished := any(time.Now().Add(-c.finished).UnixMicro())
			if c.unfinished {
				finished = nil
			}
			w.exec(`UPDATE {outbox} SET state = ?, created_at = ?, finished_at = ? WHERE sequence = ?`,
				c.state, time.Now().Add(-c.created).UnixMicro(), finished, list[i])
			w.exec(`INSERT INTO {attempts} (sequence, number, started_at, duration_us, worker) VALUES (?, 1, 0, 0, 'w')`, list[i])
			if !c.pruned {
				want = append(want, list[i])
			}
		}
		next, deleted, err := w.store.Prune(w.t.Context(), retention, 0)
		if err != nil || deleted != 2 || next == 0 {
			w.t.Errorf("pruned %d up to %d: %v", deleted, next, err)
		}
		if next, deleted, err := w.store.Prune(w.t.Context(), retention, next); err != nil || deleted != 0 || next != 0 {
			w.t.Errorf("then pruned %d up to %d: %v", deleted, next, err)
		}
		if diff := cmp.Diff(want, all[int64](w, `SELECT sequence FROM {outbox} ORDER BY sequence`)); diff != "" {
			w.t.Error(diff)
		}
		if diff := cmp.Diff(want, all[int64](w, `SELECT sequence FROM {attempts} ORDER BY sequence`)); diff != "" {
			w.t.Errorf("attempts: %s", diff)
		}
	})
}

// Workers prune each minute: what is too young must not be walked over each time.
func TestPruningReadsNoMoreThanABatchOfWhatIsTooYoung(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	db.SetMaxOpenConns(1) // its statistics are then known
	w := newWorld(t, db)
	w.publish("s", touch("a"))
	w.want()
	const young = 20_000
	w.exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, resources, state, outcome, finished_at)
		SELECT ` + w.uuidOf("n") + `, 'MediaDeleted', 's', '{}', 1, '[]', 'completed', 'done', {now} FROM (` + w.series(young) + `) AS s`)
	before := dbtest.ReadRows(t, db)
	if next, deleted, err := w.store.Prune(t.Context(), time.Hour, 0); err != nil || next != 0 || deleted != 0 {
		t.Errorf("pruned %d up to %d: %v", deleted, next, err)
	}
	if read := dbtest.ReadRows(t, db) - before; read > young/2 {
		t.Errorf("%d rows were read of %d", read, young)
	}
}

func TestIdleMeansThatNothingRunsByItselfSoon(t *testing.T) {
	for _, test := range []struct {
		name string
		idle bool
		set  func(w *world)
	}{
		{"nothing there", true, func(*world) {}},
		{"published", false, func(w *world) { w.publish("s", touch("a")) }},
		{"available", false, func(w *world) { w.publish("s", touch("a")); w.want() }},
		{"held", true, func(w *world) {
			w.publish("s", touch("a"))
			w.want()
			w.exec(`UPDATE {lanes} SET held = true`)
		}},
		{"leased", false, func(w *world) { w.publish("s", touch("a")); w.claimOne("w") }},
		{"a dead worker's", false, func(w *world) { w.publish("s", touch("a")); w.lapse(w.claimOne("w").LaneID) }},
		{"completed", true, func(w *world) { w.ending(done) }},
		{"dead", true, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Die, Failure: ruined}) }},
		{"retry in the future", true, func(w *world) { w.ending(retryIn(time.Hour)) }},
		{"retry that is due", false, func(w *world) { w.ending(retryIn(-time.Second)) }},
		{"deferred", false, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour}) }},
		{"interrupted", false, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Yield, Failure: trouble}) }},
		{"interrupted while it wrote", false, func(w *world) {
			w.ending(outbox.Verdict{Kind: outbox.Yield, Failure: trouble, Delay: time.Hour})
		}},
		{"deferred until an event that waits for its retry", true, func(w *world) {
			w.ending(retryIn(time.Hour))
			w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour, WaitsFor: 1})
		}},
		{"deferred until an event that has ended", false, func(w *world) {
			w.ending(done)
			w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour, WaitsFor: 1})
		}},
		{"a snapshot is due", false, func(w *world) {
			w.exec(`INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
				VALUES (1, 1, 2, 'dev', 'pending', 0)`)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *world) {
				test.set(w)
				idle, err := w.store.Idle(w.t.Context())
				if err != nil || idle != test.idle {
					w.t.Errorf("idle: %t, %v\n%s", idle, err, w.dump())
				}
			})
		})
	}
}

// ending runs one event to that end, and gives its lane back.
func (w *world) ending(verdict outbox.Verdict) {
	w.t.Helper()
	sequence := w.publish("s", touch("a"))[0]
	lane := w.claimOne("w")
	w.settle(lane, sequence, verdict)
	holding := outbox.Holding{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: sequence}
	if err := w.store.Release(w.t.Context(), []outbox.Holding{holding}); err != nil {
		w.t.Fatal(err)
	}
}
