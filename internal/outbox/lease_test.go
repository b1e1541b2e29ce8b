package outbox_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

func TestALaneHasOneHolder(t *testing.T) {
	each(t, func(w *world) {
		const lanes, workers = 60, 4
		for i := range lanes {
			w.publish("service "+string(rune('A'+i)), touch("a"))
		}
		w.want()
		var mu sync.Mutex
		holder := make(map[int64]int)
		var claiming sync.WaitGroup
		for worker := range workers {
			claiming.Go(func() {
				store := w.another()
				for range 2 * lanes {
					claimed, err := store.Claim(w.t.Context(), "w", 3, lease)
					if err != nil {
						w.t.Error(err)
						return
					}
					mu.Lock()
					for _, lane := range claimed {
						if other, twice := holder[lane.LaneID]; twice {
							w.t.Errorf("lane %d is held by worker %d and by %d", lane.LaneID, other, worker)
						}
						holder[lane.LaneID] = worker
					}
					mu.Unlock()
				}
			})
		}
		claiming.Wait()
		if len(holder) != lanes {
			w.t.Errorf("%d of %d lanes were claimed", len(holder), lanes)
		}
	})
}

func TestWhoWaitedLongestIsClaimedFirst(t *testing.T) {
	each(t, func(w *world) {
		for _, service := range []string{"a", "b", "c"} {
			w.publish(service, touch("m"))
		}
		w.want()
		w.exec(`UPDATE {lanes} SET ready_at = CASE service_id WHEN 'b' THEN 1 WHEN 'c' THEN 2 ELSE 3 END`)
		for _, want := range []string{"b", "c", "a"} {
			lanes, err := w.store.Claim(w.t.Context(), "w", 1, lease)
			if err != nil || len(lanes) != 1 || lanes[0].ServiceID != want {
				w.t.Fatalf("claimed %v (%v), want %s", lanes, err, want)
			}
		}
	})
}

func TestALapsedLaneIsTakenOver(t *testing.T) {
	each(t, func(w *world) {
		event := w.publish("s", touch("a"))[0]
		lane := w.claimOne("dead")
		if got := w.takeOver("heir"); len(got) > 0 {
			w.t.Fatalf("took over %v before its lease lapsed", got)
		}
		if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(lane)}, w.read(lane.LaneID)); err != nil {
			w.t.Fatal(err)
		}
		if got := w.state(event); got != "running" {
			w.t.Fatalf("the event is %s", got)
		}
		w.lapse(lane.LaneID)
		taken := w.takeOver("heir")
		if len(taken) != 1 || taken[0].Token != lane.Token+1 || taken[0].LapseCount != 1 {
			w.t.Fatalf("took over %+v from %+v", taken, lane)
		}
		found := w.event(lane.LaneID, event)
		if w.state(event) != "available" || found.LapseCount != 1 {
			w.t.Errorf("what the dead worker ran: %s", w.dump())
		}
		if status := w.status(lane.LaneID); status.TaintedTo < event {
			w.t.Errorf("nobody knows that the event may have run: tainted to %d", status.TaintedTo)
		}
	})
}

// A worker that has lost its lease changes nothing.
func TestAnOldTokenChangesNothing(t *testing.T) {
	each(t, func(w *world) {
		list := w.publish("s", touch("a"), touch("b"), touch("c"), touch("d"), touch("e"), touch("a"))
		old := w.claimOne("old")
		found := w.read(old.LaneID)
		w.lapse(old.LaneID)
		lane := w.takeOver("new")[0]
		before := w.dump()

		late := []*outbox.Settlement{
			settlement(old, found[0], done),
			settlement(old, found[1], retryIn(time.Hour)),
			settlement(old, found[2], outbox.Verdict{Kind: outbox.Die, Failure: ruined}),
			settlement(old, found[3], outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour}),
			settlement(old, found[4], outbox.Verdict{Kind: outbox.Yield, Failure: trouble}),
		}
		if err := w.store.Settle(w.t.Context(), late); err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.store.Park(w.t.Context(), holdingOf(old), found[:1], found[5:]); !errors.Is(err, outbox.ErrLeaseLost) {
			w.t.Errorf("parking got %v", err)
		}
		if err := w.store.MarkRunning(w.t.Context(), []outbox.Holding{holdingOf(old)}, found); err != nil {
			w.t.Fatal(err)
		}
		kept, lost, err := w.store.Renew(w.t.Context(), []outbox.Holding{{LaneID: old.LaneID, Token: old.Token, ReadFrom: 99}}, lease)
		if err != nil || len(kept) > 0 || !lost[old.LaneID] {
			w.t.Errorf("renewing kept %v, lost %v: %v", kept, lost, err)
		}
		if err := w.store.Release(w.t.Context(), []outbox.Holding{{LaneID: old.LaneID, Token: old.Token, ReadFrom: 99}}); err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(before, w.dump()); diff != "" {
			w.t.Errorf("what changed: %s", diff)
		}
		if n := one[int](w, `SELECT count(*) FROM {attempts}`); n > 0 || len(w.effects()) > 0 {
			w.t.Errorf("%d attempts, effects %v", n, w.effects())
		}
		// The new holder's do, also in one batch with the old one's.
		if err := w.store.Settle(w.t.Context(), append(late, settlement(lane, found[5], done))); err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff([]int64{list[5]}, w.effects()); diff != "" {
			w.t.Error(diff)
		}
	})
}

func TestARenewedLeaseDoesNotLapse(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		lane := w.claimOne("w")
		w.lapse(lane.LaneID)
		kept, lost, err := w.store.Renew(w.t.Context(), []outbox.Holding{holdingOf(lane)}, lease)
		if err != nil || !kept[lane.LaneID] || len(lost) > 0 {
			w.t.Fatalf("kept %v, lost %v: %v", kept, lost, err)
		}
		if taken := w.takeOver("other"); len(taken) > 0 {
			w.t.Errorf("took over %v", taken)
		}
	})
}

// A transaction that keeps one lane locked for long, such as the snapshot of a
// large environment, must not make a worker lose its other lanes.
func TestALockedLaneDoesNotKeepOthersFromBeingRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.publish("locked", touch("a"))
	w.publish("free", touch("a"))
	w.want()
	lanes := w.claim("w")
	var held []outbox.Holding
	var locked, free int64
	for _, lane := range lanes {
		held = append(held, holdingOf(lane))
		if lane.ServiceID == "locked" {
			locked = lane.LaneID
		} else {
			free = lane.LaneID
		}
		w.settleEvent(lane, w.read(lane.LaneID)[0], retryIn(-time.Second))
		w.lapse(lane.LaneID)
	}
	tx, err := w.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), w.db.SQL(`SELECT 1 FROM {lanes} WHERE lane_id = $1 FOR UPDATE`), locked); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextWithTimeout(t, 3*time.Second)
	defer cancel()
	kept, lost, err := w.store.Renew(ctx, held, lease)
	if err == nil || !kept[free] || kept[locked] || len(lost) > 0 {
		t.Errorf("kept %v, lost %v: %v; want lane %d kept and nothing said about %d", kept, lost, err, free, locked)
	}
	// Nor must it keep other lanes' due retries from running.
	ctx, cancel = contextWithTimeout(t, 10*time.Second)
	defer cancel()
	promoted, _, err := w.store.Promote(ctx)
	if diff := cmp.Diff([]int64{free}, promoted); diff != "" || err != nil {
		t.Errorf("promoted: %s, %v", diff, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if promoted, _, err := w.store.Promote(t.Context()); err != nil || len(promoted) != 1 || promoted[0] != locked {
		t.Errorf("promoted %v later: %v", promoted, err)
	}
}

// A lane is asleep when nothing can be read in it, whatever was seen of it before.
func TestADrainedLaneSleepsUnlessSomethingCanBeRead(t *testing.T) {
	for _, test := range []struct {
		name string
		wake func(w *world, lane outbox.Lane, first int64)
	}{
		{"nothing", nil},
		{"a new event", func(w *world, _ outbox.Lane, _ int64) { w.publish("s", touch("b")) }},
		{"a retry that is due", func(w *world, _ outbox.Lane, _ int64) { w.promote() }},
		{"what waited for an event", func(w *world, lane outbox.Lane, first int64) {
			w.promote()
			w.settle(lane, first, done)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *world) {
				list := w.publish("s", touch("a"), touch("a"))
				lane := w.claimOne("w")
				second := w.event(lane.LaneID, list[1])
				w.settle(lane, list[0], retryIn(time.Hour))
				if parked := w.park(lane, nil, second); len(parked) != 1 {
					w.t.Fatalf("parked %v", parked)
				}
				if found := w.read(lane.LaneID); len(found) > 0 {
					w.t.Fatalf("not drained: %v", sequences(found))
				}
				if test.wake != nil {
					test.wake(w, lane, list[0])
				}
				if err := w.store.Release(w.t.Context(), []outbox.Holding{
					{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: list[1]},
				}); err != nil {
					w.t.Fatal(err)
				}
				if got, want := len(w.claim("next")), min(1, len(test.name)-len("nothing")); (got > 0) != (want > 0) {
					w.t.Errorf("claimed %d lanes after %s\n%s", got, test.name, w.dump())
				}
			})
		})
	}
}

func TestAHeldLaneIsNotClaimedUntilItIsReleased(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		w.want()
		w.exec(`UPDATE {lanes} SET held = true`)
		if lanes := w.claim("w"); len(lanes) > 0 {
			w.t.Fatalf("claimed %v", lanes)
		}
		w.exec(`UPDATE {lanes} SET held = false`)
		if lanes := w.claim("w"); len(lanes) != 1 {
			w.t.Fatalf("claimed %v", lanes)
		}
	})
}

func TestOnlySQLitesOneWorkerVoidsLeases(t *testing.T) {
	each(t, func(w *world) {
		w.publish("s", touch("a"))
		w.claimOne("dead")
		if err := w.store.VoidLeases(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		want := 1
		if w.db.Dialect == database.PostgreSQL {
			want = 0
		}
		if taken := w.takeOver("heir"); len(taken) != want {
			w.t.Errorf("took over %d lanes, want %d", len(taken), want)
		}
	})
}
