// Package history_test lets whole installations live through random histories.
package history_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// These environment variables change a run: for how long one history follows
// another, the seed of the first, how many events each has, and whether the
// publishers' clocks agree.
const (
	durationVariable = "OWNBUCKET_HISTORIES"
	seedVariable     = "OWNBUCKET_HISTORIES_SEED"
	eventsVariable   = "OWNBUCKET_HISTORIES_EVENTS"
	clocksVariable   = "OWNBUCKET_HISTORIES_CLOCKS"
)

// publishersClocksDisagree lets the versions of a media fall in its publish
// order, as if the CMS's nodes didn't agree on the time: the sequence alone
// decides which event is newer. OWNBUCKET_HISTORIES_CLOCKS=agree turns it off.
const publishersClocksDisagree = true

func clocksDisagree() bool { return publishersClocksDisagree && os.Getenv(clocksVariable) != "agree" }

// Events are published by many transactions at once, while workers are killed
// and frozen, calls fail, and operators act. In the end the buckets, the metadata,
// the ledger, the environments and the events' ends are as if the events had run
// one after the other.
func TestAnyHistoryEndsAsIfItsEventsHadRunOneByOne(t *testing.T) {
	long := setting(t, durationVariable, 0, time.ParseDuration)
	first := uint64(1) // the same history each time, where it is only one
	if long > 0 {
		first = rand.Uint64N(1_000_000)
	}
	seed := setting(t, seedVariable, first, func(text string) (uint64, error) {
		return strconv.ParseUint(text, 10, 64)
	})
	for until := time.Now().Add(long); ; seed++ {
		for _, c := range []struct {
			name string
			url  func(testing.TB) string
			extent
		}{
			{"postgresql", dbtest.PostgreSQLURL, extent{workers: 4, services: 5, events: min(2000, 5000/slowness)}},
			{"sqlite", dbtest.SQLiteURL, extent{workers: 1, services: 3, events: 1200 / slowness}},
		} {
			t.Run(fmt.Sprintf("%s/%s=%d", c.name, seedVariable, seed), func(t *testing.T) {
				c.events = setting(t, eventsVariable, c.events, strconv.Atoi)
				h := newHistory(t, c.url(t), c.extent, seed)
				h.live(t.Context())
				h.verify(t)
			})
		}
		if t.Failed() || time.Now().After(until) {
			return
		}
	}
}

// setting reads a variable of the environment, if it is set.
func setting[T any](t *testing.T, name string, otherwise T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	value, err := parse(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return value
}
