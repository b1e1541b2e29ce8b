package integration_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
)

// machine compares an integration with the simplest model of it.
type machine struct {
	db                      *database.DB
	store                   *integration.Store
	service                 string
	lane                    int64
	exists, paused, blocked bool
	reason                  string
	wake                    int64
	held                    bool
}

// released is how the lane's held and wake must follow what was done.
func (m *machine) derive() {
	held := m.exists && (m.paused || m.blocked)
	if m.held && !held {
		m.wake++
	}
	m.held = held
}

func (m *machine) ok(r *rapid.T, what string, err error, wanted bool) {
	if (err == nil) != wanted {
		r.Fatalf("%s: %v, want success: %t", what, err, wanted)
	}
	m.derive()
}

func (m *machine) actions(t *testing.T) map[string]func(*rapid.T) {
	ctx := t.Context()
	return map[string]func(*rapid.T){
		"set": func(r *rapid.T) {
			saved, err := m.store.Set(ctx, production(m.service))
			m.lane, m.exists = saved.Integration.LaneID, true
			m.ok(r, "set", err, true)
		},
		"delete": func(r *rapid.T) {
			err := m.store.Delete(ctx, m.service, "", "me", "")
			existed := m.exists
			m.exists, m.paused, m.blocked = false, false, false
			m.ok(r, "delete", err, existed)
		},
		"pause": func(r *rapid.T) {
			m.paused = m.exists
			m.ok(r, "pause", m.store.Pause(ctx, m.service, "", "me", "maintenance"), m.exists)
		},
		"resume": func(r *rapid.T) {
			m.paused = false
			m.ok(r, "resume", m.store.Resume(ctx, m.service, "", "me", ""), m.exists)
		},
		"block": func(r *rapid.T) {
			if m.lane == 0 {
				r.Skip("no lane yet")
			}
			reason := rapid.SampledFrom([]string{"denied", "no bucket"}).Draw(r, "reason")
			if m.exists && !m.blocked {
				m.blocked, m.reason = true, reason
			}
			m.ok(r, "block", m.store.Block(ctx, m.lane, "code", reason), true)
		},
		"probe passed": func(r *rapid.T) {
			probed := m.probed(t, r)
			m.blocked = false
			m.ok(r, "probe passed", m.store.ProbePassed(ctx, probed), true)
		},
		"probe failed": func(r *rapid.T) {
			probed := m.probed(t, r)
			if m.blocked {
				m.reason = "still denied"
			}
			m.ok(r, "probe failed", m.store.ProbeFailed(ctx, probed, "code", "still denied"), true)
		},
		"": func(r *rapid.T) { m.check(t, r) },
	}
}

// probed are the settings as a worker has them that probes them.
func (m *machine) probed(t *testing.T, r *rapid.T) integration.Integration {
	if !m.exists {
		r.Skip("nothing is probed without settings")
	}
	return show(t, m.store, m.service, "")
}

func (m *machine) check(t *testing.T, r *rapid.T) {
	if m.lane == 0 {
		return
	}
	var lane struct {
		Held  bool   `db:"held"`
		Wake  int64  `db:"wake"`
		Ready *int64 `db:"ready_at"`
	}
	err := m.db.GetContext(t.Context(), &lane, m.db.SQL(`SELECT held, wake, ready_at FROM {lanes} WHERE lane_id = ?`), m.lane)
	if err != nil {
		r.Fatal(err)
	}
	if lane.Held != m.held || lane.Wake != m.wake || (lane.Ready != nil) != (m.wake > 0) {
		r.Fatalf("lane %+v, want held %t, wake %d and a time where it was woken", lane, m.held, m.wake)
	}
	if !m.exists {
		return
	}
	got := show(t, m.store, m.service, "")
	want := integration.Active
	switch {
	case m.paused:
		want = integration.Paused
	case m.blocked:
		want = integration.Blocked
	}
	if got.State != want {
		r.Fatalf("state %s, want %s", got.State, want)
	}
	if got.BlockedSince.IsZero() == m.blocked || m.blocked && got.BlockedReason != m.reason {
		r.Fatalf("blocked since %v by %q, want blocked: %t, by %q", got.BlockedSince, got.BlockedReason, m.blocked, m.reason)
	}
	if got.NextProbeAt.IsZero() == (want == integration.Blocked) {
		r.Fatalf("next probe at %v in state %s", got.NextProbeAt, want)
	}
}

func TestALaneIsHeldJustWhileItsIntegrationIsBlockedOrPaused(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		run := 0
		rapid.Check(t, func(r *rapid.T) {
			run++
			m := &machine{db: db, store: integration.New(db), service: fmt.Sprintf("s%d", run)}
			r.Repeat(m.actions(t))
		})
	})
}

func blocked(t testing.TB, store *integration.Store, serviceID string) int64 {
	t.Helper()
	lane := set(t, store, production(serviceID)).LaneID
	if err := store.Block(t.Context(), lane, "denied", "AssumeRole was denied"); err != nil {
		t.Fatal(err)
	}
	return lane
}

func probesOf(t testing.TB, store *integration.Store, n int) []string {
	t.Helper()
	due, err := store.DueProbes(t.Context(), n, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, i := range due {
		services = append(services, i.ServiceID)
	}
	slices.Sort(services)
	return services
}

// makeDue lets the time of every probe come.
func makeDue(t testing.TB, db *database.DB) {
	t.Helper()
	exec(t, db, `UPDATE {integrations} SET next_probe_at = 1 WHERE blocked_since IS NOT NULL`)
}

func TestOnlyBlockedIntegrationsAreProbedAndOneProbeAtATime(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		set(t, store, production("active"))
		blocked(t, store, "blocked")
		blocked(t, store, "paused")
		if err := store.Pause(t.Context(), "paused", "", "me", ""); err != nil {
			t.Fatal(err)
		}
		if got := probesOf(t, store, 10); got != nil {
			t.Errorf("%v are probed at once; the first probe comes after a second", got)
		}
		makeDue(t, db)
		if diff := cmp.Diff([]string{"blocked"}, probesOf(t, store, 10)); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if got := probesOf(t, store, 10); got != nil {
			t.Errorf("%v are probed twice at a time", got)
		}
		if err := store.Resume(t.Context(), "paused", "", "me", ""); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"paused"}, probesOf(t, store, 10)); diff != "" {
			t.Errorf("a resumed integration is probed at once: -want +got\n%s", diff)
		}
		set(t, store, integration.Change{ServiceID: "blocked", Memo: new("mended")})
		if diff := cmp.Diff([]string{"blocked"}, probesOf(t, store, 10)); diff != "" {
			t.Errorf("changed settings are probed at once: -want +got\n%s", diff)
		}
	})
}

func TestWorkersShareTheDueProbes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		const integrations, workers = 20, 4
		for n := range integrations {
			blocked(t, store, fmt.Sprintf("s%d", n))
		}
		makeDue(t, db)
		var mu sync.Mutex
		leased := make(map[string]int)
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for {
					due, err := store.DueProbes(t.Context(), 3, time.Hour)
					if err != nil || len(due) > 3 {
						t.Errorf("%d probes, %v; want at most 3", len(due), err)
					}
					if err != nil || len(due) == 0 {
						return
					}
					mu.Lock()
					for _, i := range due {
						leased[i.ServiceID]++
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		total := 0
		for service, times := range leased {
			if total += times; times != 1 {
				t.Errorf("%s was leased %d times", service, times)
			}
		}
		// A worker that found all others' rows locked may have stopped early.
		total += len(probesOf(t, store, integrations))
		if total != integrations {
			t.Errorf("%d probes in all, want %d", total, integrations)
		}
	})
}

func TestProbesBackOffToFifteenMinutes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		blocked(t, store, "s")
		probed := show(t, store, "s", "")
		for failures := 1; failures <= 70; failures++ {
			before := get[int64](t, db, `SELECT {now}`)
			if err := store.ProbeFailed(t.Context(), probed, "", ""); err != nil {
				t.Fatal(err)
			}
			longest := 15 * time.Minute
			if failures < 10 {
				longest = min(longest, time.Second<<failures)
			}
			i := show(t, store, "s", "")
			delay := time.Duration(i.NextProbeAt.UnixMicro()-before) * time.Microsecond
			// The clocks of before and of the update are a moment apart.
			if delay < longest/2 || delay > longest+10*time.Second {
				t.Errorf("after %d failures the next probe is in %v, want %v to %v", failures, delay, longest/2, longest)
			}
			if i.BlockedReason != "AssumeRole was denied" {
				t.Errorf("reason %q: a probe that told nothing must leave it", i.BlockedReason)
			}
		}
		if err := store.ProbePassed(t.Context(), probed); err != nil {
			t.Fatal(err)
		}
		if i := show(t, store, "s", ""); i.ProbePassedAt.IsZero() || i.ProbeFailures != 0 {
			t.Errorf("passed at %v after %d failures, want a time and none", i.ProbePassedAt, i.ProbeFailures)
		}
	})
}

// Settings are changed while a probe is under way: what it finds out is about
// the former ones.
func TestAProbeOfFormerSettingsChangesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		blocked(t, store, "s")
		makeDue(t, db)
		due, err := store.DueProbes(t.Context(), 1, time.Hour)
		if err != nil || len(due) != 1 {
			t.Fatalf("%d probes, %v", len(due), err)
		}
		set(t, store, integration.Change{ServiceID: "s", Memo: new("says nothing about the account")})
		if err := store.ProbeFailed(t.Context(), due[0], "denied", "still"); err != nil {
			t.Errorf("the same account was probed: %v", err)
		}
		set(t, store, integration.Change{ServiceID: "s", RoleARN: new("arn:aws:iam::123456789012:role/Other")})
		if err := store.ProbeFailed(t.Context(), due[0], "no_such_bucket", "of the former settings"); !errors.Is(err, integration.ErrChanged) {
			t.Errorf("%v, want ErrChanged", err)
		}
		if err := store.ProbePassed(t.Context(), due[0]); !errors.Is(err, integration.ErrChanged) {
			t.Errorf("%v, want ErrChanged", err)
		}
		if i := show(t, store, "s", ""); i.State != integration.Blocked || i.BlockedCode != "denied" || !i.ProbePassedAt.IsZero() {
			t.Errorf("%s by %q, passed at %v", i.State, i.BlockedCode, i.ProbePassedAt)
		}
		if diff := cmp.Diff([]string{"s"}, probesOf(t, store, 10)); diff != "" {
			t.Errorf("the new settings are probed at once: -want +got\n%s", diff)
		}
	})
}

func TestAReasonThatNoDatabaseTakesIsKeptReadable(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		store := integration.New(db)
		lane := set(t, store, production("s")).LaneID
		if err := store.Block(t.Context(), lane, "denied", "bad\x00 \xff end"); err != nil {
			t.Fatal(err)
		}
		if got := show(t, store, "s", "").BlockedReason; got != "bad\uFFFD \uFFFD end" {
			t.Errorf("reason %q", got)
		}
	})
}
