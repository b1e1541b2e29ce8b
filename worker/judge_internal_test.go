package worker

import (
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/handlers"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// What publishers are told to keep their sources for, and what spreads those
// that failed together, must hold at the longest delay too.
func TestRetriesSpreadOverAboutTwoAndAHalfDays(t *testing.T) {
	t.Parallel()
	const attempts, rounds = 25, 400
	delay := backoff(time.Second)
	var total time.Duration
	for range rounds {
		for failures := 1; failures < attempts; failures++ {
			d, most := delay(failures), longestDelay
			if failures < 17 {
				most = time.Second << (failures - 1)
			}
			if d < 0 || d > most {
				t.Fatalf("failure %d is followed by %s, of at most %s", failures, d, most)
			}
			total += d
		}
	}
	if mean := (total / rounds).Hours(); mean < 2*24 || mean > 3*24 {
		t.Errorf("%d attempts spread over %.1f days", attempts, mean/24)
	}
	seen := map[time.Duration]bool{}
	for range rounds {
		seen[delay(attempts-1)] = true
	}
	if len(seen) < rounds/2 {
		t.Errorf("the longest delay has no jitter: %d different ones of %d", len(seen), rounds)
	}
	for _, base := range []time.Duration{1, time.Millisecond, 24 * time.Hour} {
		for failures := 1; failures < 200; failures++ {
			if d := backoff(base)(failures); d < 0 || d > longestDelay {
				t.Fatalf("with a base of %s, failure %d is followed by %s", base, failures, d)
			}
		}
	}
}

func TestAFullSpoolCostsNoAttemptHoweverOftenItIsFull(t *testing.T) {
	t.Parallel()
	const attempts = 25
	w := &Worker{config: Config{RetryAttempts: attempts}, backoff: backoff(time.Second)}
	full := failure.New(failure.Interrupted, failure.SpoolFull, "no room")
	for recorded := range 200 {
		e := &outbox.Event{RecordedCount: recorded, FailureCount: attempts - 1}
		v := w.failed(t.Context(), &attempt{delivery: &outbox.Delivery{Event: e}, result: &handlers.Result{}}, full)
		if v.Kind != outbox.Yield || v.Failure != full {
			t.Fatalf("after %d attempts: %+v, want it to be given back", recorded, v)
		}
		if most := time.Second << min(recorded, 8); v.Delay < 0 || v.Delay > most {
			t.Fatalf("after %d attempts it waits for %s, want at most %s", recorded, v.Delay, most)
		}
	}
}
