package outbox_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
)

func TestALaneHasOneHolder(t *testing.T) {
	each(t, func(w *world) {
		const lanes, workers = 60, 4
		for i := range lanes {
			w.Publish("service "+string(rune('A'+i)), outboxtest.Touch("a"))
		}
		w.Want()
		var mu sync.Mutex
		holder := make(map[int64]int)
		var claiming sync.WaitGroup
		for worker := range workers {
			claiming.Go(func() {
				store := w.Another()
				for range 2 * lanes {
					claimed, err := store.Claim(w.T.Context(), "w", 3, outboxtest.Lease)
					if err != nil {
						w.T.Error(err)
						return
					}
					mu.Lock()
					for _, lane := range claimed {
						if other, twice := holder[lane.LaneID]; twice {
							w.T.Errorf("lane %d is held by worker %d and by %d", lane.LaneID, other, worker)
						}
						holder[lane.LaneID] = worker
					}
					mu.Unlock()
				}
			})
		}
		claiming.Wait()
		if len(holder) != lanes {
			w.T.Errorf("%d of %d lanes were claimed", len(holder), lanes)
		}
	})
}

func TestWhoWaitedLongestIsClaimedFirst(t *testing.T) {
	each(t, func(w *world) {
		for _, service := range []string{"a", "b", "c"} {
			w.Publish(service, outboxtest.Touch("m"))
		}
		w.Want()
		w.Exec(`UPDATE {lanes} SET ready_at = CASE service_id WHEN 'b' THEN 1 WHEN 'c' THEN 2 ELSE 3 END`)
		for _, want := range []string{"b", "c", "a"} {
			lanes, err := w.Store.Claim(w.T.Context(), "w", 1, outboxtest.Lease)
			if err != nil || len(lanes) != 1 || lanes[0].ServiceID != want {
				w.T.Fatalf("claimed %v (%v), want %s", lanes, err, want)
			}
		}
	})
}

func TestALapsedLaneIsTakenOver(t *testing.T) {
	each(t, func(w *world) {
		event := w.Publish("s", outboxtest.Touch("a"))[0]
		lane := w.ClaimOne("dead")
		if got := w.TakeOver("heir"); len(got) > 0 {
			w.T.Fatalf("took over %v before its lease lapsed", got)
		}
		if err := w.Store.MarkRunning(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}, w.Read(lane.LaneID)); err != nil {
			w.T.Fatal(err)
		}
		if got := w.State(event); got != "running" {
			w.T.Fatalf("the event is %s", got)
		}
		w.Lapse(lane.LaneID)
		taken := w.TakeOver("heir")
		if len(taken) != 1 || taken[0].Token != lane.Token+1 || taken[0].LapseCount != 1 {
			w.T.Fatalf("took over %+v from %+v", taken, lane)
		}
		found := w.Event(lane.LaneID, event)
		if w.State(event) != "available" || found.LapseCount != 1 {
			w.T.Errorf("what the dead worker ran: %s", w.Dump())
		}
		if status := w.Status(lane.LaneID); status.TaintedTo < event {
			w.T.Errorf("nobody knows that the event may have run: tainted to %d", status.TaintedTo)
		}
	})
}

// A worker that has lost its lease changes nothing.
func TestAnOldTokenChangesNothing(t *testing.T) {
	each(t, func(w *world) {
		list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("b"), outboxtest.Touch("c"), outboxtest.Touch("d"), outboxtest.Touch("e"), outboxtest.Touch("a"))
		old := w.ClaimOne("old")
		found := w.Read(old.LaneID)
		w.Lapse(old.LaneID)
		lane := w.TakeOver("new")[0]
		before := w.Dump()

		late := []*outbox.Settlement{
			outboxtest.Settlement(old, found[0], outboxtest.Done),
			outboxtest.Settlement(old, found[1], outboxtest.RetryIn(time.Hour)),
			outboxtest.Settlement(old, found[2], outbox.Verdict{Kind: outbox.Die, Failure: outboxtest.Ruined}),
			outboxtest.Settlement(old, found[3], outbox.Verdict{Kind: outbox.Defer, Delay: time.Hour}),
			outboxtest.Settlement(old, found[4], outbox.Verdict{Kind: outbox.Yield, Failure: outboxtest.Trouble}),
		}
		if err := w.Store.Settle(w.T.Context(), late); err != nil {
			w.T.Fatal(err)
		}
		if _, err := w.Store.Park(w.T.Context(), outboxtest.HoldingOf(old), found[:1], found[5:]); !errors.Is(err, outbox.ErrLeaseLost) {
			w.T.Errorf("parking got %v", err)
		}
		if err := w.Store.MarkRunning(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(old)}, found); err != nil {
			w.T.Fatal(err)
		}
		kept, lost, err := w.Store.Renew(w.T.Context(), []outbox.Holding{{LaneID: old.LaneID, Token: old.Token, ReadFrom: 99}}, outboxtest.Lease)
		if err != nil || len(kept) > 0 || !lost[old.LaneID] {
			w.T.Errorf("renewing kept %v, lost %v: %v", kept, lost, err)
		}
		if err := w.Store.Release(w.T.Context(), []outbox.Holding{{LaneID: old.LaneID, Token: old.Token, ReadFrom: 99}}); err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff(before, w.Dump()); diff != "" {
			w.T.Errorf("what changed: %s", diff)
		}
		if n := outboxtest.One[int](w.World, `SELECT count(*) FROM {attempts}`); n > 0 || len(w.Effects()) > 0 {
			w.T.Errorf("%d attempts, effects %v", n, w.Effects())
		}
		// The new holder's do, also in one batch with the old one's.
		if err := w.Store.Settle(w.T.Context(), append(late, outboxtest.Settlement(lane, found[5], outboxtest.Done))); err != nil {
			w.T.Fatal(err)
		}
		if diff := cmp.Diff([]int64{list[5]}, w.Effects()); diff != "" {
			w.T.Error(diff)
		}
	})
}

func TestARenewedLeaseDoesNotLapse(t *testing.T) {
	each(t, func(w *world) {
		w.Publish("s", outboxtest.Touch("a"))
		lane := w.ClaimOne("w")
		w.Lapse(lane.LaneID)
		kept, lost, err := w.Store.Renew(w.T.Context(), []outbox.Holding{outboxtest.HoldingOf(lane)}, outboxtest.Lease)
		if err != nil || !kept[lane.LaneID] || len(lost) > 0 {
			w.T.Fatalf("kept %v, lost %v: %v", kept, lost, err)
		}
		if taken := w.TakeOver("other"); len(taken) > 0 {
			w.T.Errorf("took over %v", taken)
		}
	})
}

// A transaction that keeps one lane locked for long, such as the snapshot of a
// large environment, must not make a worker lose its other lanes.
func TestALockedLaneDoesNotKeepOthersFromBeingRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dbtest.PostgreSQL(t))
	w.Publish("locked", outboxtest.Touch("a"))
	w.Publish("free", outboxtest.Touch("a"))
	w.Want()
	lanes := w.Claim("w")
	var held []outbox.Holding
	var locked, free int64
	for _, lane := range lanes {
		held = append(held, outboxtest.HoldingOf(lane))
		if lane.ServiceID == "locked" {
			locked = lane.LaneID
		} else {
			free = lane.LaneID
		}
		w.SettleEvent(lane, w.Read(lane.LaneID)[0], outboxtest.RetryIn(-time.Second))
		w.Lapse(lane.LaneID)
	}
	tx, err := w.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), w.DB.SQL(`SELECT 1 FROM {lanes} WHERE lane_id = $1 FOR UPDATE`), locked); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	kept, lost, err := w.Store.Renew(ctx, held, outboxtest.Lease)
	if err == nil || !kept[free] || kept[locked] || len(lost) > 0 {
		t.Errorf("kept %v, lost %v: %v; want lane %d kept and nothing said about %d", kept, lost, err, free, locked)
	}
	// Nor must it keep other lanes' due retries from running.
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	promoted, _, err := w.Store.Promote(ctx)
	if diff := cmp.Diff([]int64{free}, promoted); diff != "" || err != nil {
		t.Errorf("promoted: %s, %v", diff, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if promoted, _, err := w.Store.Promote(t.Context()); err != nil || len(promoted) != 1 || promoted[0] != locked {
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
		{"a new event", func(w *world, _ outbox.Lane, _ int64) { w.Publish("s", outboxtest.Touch("b")) }},
		{"a retry that is due", func(w *world, _ outbox.Lane, _ int64) { w.Promote() }},
		{"what waited for an event", func(w *world, lane outbox.Lane, first int64) {
			w.Promote()
			w.Settle(lane, first, outboxtest.Done)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *world) {
				list := w.Publish("s", outboxtest.Touch("a"), outboxtest.Touch("a"))
				lane := w.ClaimOne("w")
				second := w.Event(lane.LaneID, list[1])
				w.Settle(lane, list[0], outboxtest.RetryIn(time.Hour))
				if parked := w.Park(lane, nil, second); len(parked) != 1 {
					w.T.Fatalf("parked %v", parked)
				}
				if found := w.Read(lane.LaneID); len(found) > 0 {
					w.T.Fatalf("not drained: %v", outboxtest.Sequences(found))
				}
				if test.wake != nil {
					test.wake(w, lane, list[0])
				}
				if err := w.Store.Release(w.T.Context(), []outbox.Holding{
					{LaneID: lane.LaneID, Token: lane.Token, ReadFrom: list[1]},
				}); err != nil {
					w.T.Fatal(err)
				}
				if got, want := len(w.Claim("next")), min(1, len(test.name)-len("nothing")); (got > 0) != (want > 0) {
					w.T.Errorf("claimed %d lanes after %s\n%s", got, test.name, w.Dump())
				}
			})
		})
	}
}

func TestAHeldLaneIsNotClaimedUntilItIsReleased(t *testing.T) {
	each(t, func(w *world) {
		w.Publish("s", outboxtest.Touch("a"))
		w.Want()
		w.Exec(`UPDATE {lanes} SET held = true`)
		if lanes := w.Claim("w"); len(lanes) > 0 {
			w.T.Fatalf("claimed %v", lanes)
		}
		w.Exec(`UPDATE {lanes} SET held = false`)
		if lanes := w.Claim("w"); len(lanes) != 1 {
			w.T.Fatalf("claimed %v", lanes)
		}
	})
}

func TestOnlySQLitesOneWorkerVoidsLeases(t *testing.T) {
	each(t, func(w *world) {
		w.Publish("s", outboxtest.Touch("a"))
		w.ClaimOne("dead")
		if err := w.Store.VoidLeases(w.T.Context()); err != nil {
			w.T.Fatal(err)
		}
		want := 1
		if w.DB.Dialect == database.PostgreSQL {
			want = 0
		}
		if taken := w.TakeOver("heir"); len(taken) != want {
			w.T.Errorf("took over %d lanes, want %d", len(taken), want)
		}
	})
}
