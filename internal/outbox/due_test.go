package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

func TestARetryRunsWhenItsDelayIsOver(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"))
		lane := w.ClaimOne("w")
		w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
		w.Settle(lane, list[1], outboxtest.RetryIn(-time.Second))
		lanes, more, err := w.Store.Promote(w.T.Context())
		if err != nil || more || !cmp.Equal([]int64{lane.LaneID}, lanes) {
			w.T.Errorf("promoted lanes %v, more %t: %v", lanes, more, err)
		}
		// The lane was read past both.
		if diff := cmp.Diff([]int64{list[1]}, outboxtest.Sequences(w.ReadAfter(lane.LaneID, list[1]))); diff != "" {
			w.T.Error(diff)
		}
		if got := w.State(list[0]); got != "retryable server_error" {
			w.T.Errorf("the other is %s", got)
		}
	})
}

func TestManyRetriesArePromotedInBatches(t *testing.T) {
	each(t, func(w *world) {
		for range 3 {
			w.Publish("s", outboxtest.Touch("a"))
		}
		w.Want()
		w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data)
			SELECT ` + w.UUIDOf("n") + `, 'MediaDeleted', 's', '{}' FROM (` + w.Series(1200) + `) AS s`)
		w.Exec(`UPDATE {outbox} SET lane_id = 1, resources = '[]', state = 'retryable', parked = true, next_attempt_at = 1
			WHERE sequence > 3`)
		rounds := 0
		for more := true; more; rounds++ {
			var err error
			if _, more, err = w.Store.Promote(w.T.Context()); err != nil {
				w.T.Fatal(err)
			}
		}
		if left := outboxtest.One[int](w.World, `SELECT count(*) FROM {outbox} WHERE parked`); left > 0 || rounds < 3 {
			w.T.Errorf("%d are left after %d rounds", left, rounds)
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
			list = append(list, w.Publish("s", outboxtest.Touch("a"))...)
		}
		w.Want()
		var want []int64
		for i, c := range cases {
			finished := any(time.Now().Add(-c.finished).UnixMicro())
			if c.unfinished {
				finished = nil
			}
			w.Exec(`UPDATE {outbox} SET state = ?, created_at = ?, finished_at = ? WHERE sequence = ?`,
				c.state, time.Now().Add(-c.created).UnixMicro(), finished, list[i])
			w.Exec(`INSERT INTO {attempts} (sequence, number, started_at, duration_us, worker) VALUES (?, 1, 0, 0, 'w')`, list[i])
			if !c.pruned {
				want = append(want, list[i])
			}
		}
		next, deleted, err := w.Store.Prune(w.T.Context(), retention, 0)
		if err != nil || deleted != 2 || next == 0 {
			w.T.Errorf("pruned %d up to %d: %v", deleted, next, err)
		}
		if next, deleted, err := w.Store.Prune(w.T.Context(), retention, next); err != nil || deleted != 0 || next != 0 {
			w.T.Errorf("then pruned %d up to %d: %v", deleted, next, err)
		}
		if diff := cmp.Diff(want, outboxtest.All[int64](w.World, `SELECT sequence FROM {outbox} ORDER BY sequence`)); diff != "" {
			w.T.Error(diff)
		}
		if diff := cmp.Diff(want, outboxtest.All[int64](w.World, `SELECT sequence FROM {attempts} ORDER BY sequence`)); diff != "" {
			w.T.Errorf("attempts: %s", diff)
		}
	})
}

// Workers prune each minute: what is too young must not be walked over each time.
func TestPruningReadsNoMoreThanABatchOfWhatIsTooYoung(t *testing.T) {
	t.Parallel()
	db := dbtest.PostgreSQL(t)
	db.SetMaxOpenConns(1) // its statistics are then known
	w := newWorld(t, db)
	w.Publish("s", outboxtest.Touch("a"))
	w.Want()
	const young = 20_000
	w.Exec(`INSERT INTO {outbox} (event_id, type, service_id, data, lane_id, resources, state, outcome, finished_at)
		SELECT ` + w.UUIDOf("n") + `, 'MediaDeleted', 's', '{}', 1, '[]', 'completed', 'done', {now} FROM (` + w.Series(young) + `) AS s`)
	before := dbtest.ReadRows(t, db)
	if next, deleted, err := w.Store.Prune(t.Context(), time.Hour, 0); err != nil || next != 0 || deleted != 0 {
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
		{"published", false, func(w *world) { w.Publish("s", outboxtest.Touch("a")) }},
		{"available", false, func(w *world) { w.Publish("s", outboxtest.Touch("a")); w.Want() }},
		{"held", true, func(w *world) {
			w.Publish("s", outboxtest.Touch("a"))
			w.Want()
			w.Exec(`UPDATE {lanes} SET held = true`)
		}},
		{"leased", false, func(w *world) { w.Publish("s", outboxtest.Touch("a")); w.ClaimOne("w") }},
		{"a dead worker's", false, func(w *world) { w.Publish("s", outboxtest.Touch("a")); w.Lapse(w.ClaimOne("w").LaneID) }},
		{"completed", true, func(w *world) { w.ending(outboxtest.Done) }},
		{"dead", true, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined}) }},
		{"retry in the future", true, func(w *world) { w.ending(outboxtest.RetryIn(time.Hour)) }},
		{"retry that is due", false, func(w *world) { w.ending(outboxtest.RetryIn(-time.Second)) }},
		{"deferred", false, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour}) }},
		{"interrupted", false, func(w *world) { w.ending(outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble}) }},
		{"interrupted while it wrote", false, func(w *world) {
			w.ending(outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble, Delay: time.Hour})
		}},
		{"deferred until an event that waits for its retry", true, func(w *world) {
			w.ending(outboxtest.RetryIn(time.Hour))
			w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour, WaitsFor: 1})
		}},
		{"deferred until an event that has ended", false, func(w *world) {
			w.ending(outboxtest.Done)
			w.ending(outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour, WaitsFor: 1})
		}},
		{"a snapshot is due", false, func(w *world) {
			w.Exec(`INSERT INTO {copies} (sequence, source_lane, target_lane, environment_service_id, state, created_at)
				VALUES (1, 1, 2, 'dev', 'pending', 0)`)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *world) {
				test.set(w)
				idle, err := w.Store.Idle(w.T.Context())
				if err != nil || idle != test.idle {
					w.T.Errorf("idle: %t, %v\n%s", idle, err, w.Dump())
				}
			})
		})
	}
}

// ending runs one event to that end, and gives its lane back.
func (w *world) ending(verdict outbox.Verdict) {
	w.T.Helper()
	sequence := w.Publish("s", outboxtest.Touch("a"))[0]
	lane := w.ClaimOne("w")
	w.Settle(lane, sequence, verdict)
	holding := outbox.Holding{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: sequence}
	if err := w.Store.Release(w.T.Context(), []outbox.Holding{holding}); err != nil {
		w.T.Fatal(err)
	}
}
