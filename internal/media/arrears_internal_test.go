package media

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// told is what is told of a source, and when.
type told struct {
	slow bool
	at   time.Duration // since the beginning
}

// The clock of these tests is synctest's.
func TestSourceIsSlowFromWhenItIsBehindUntilItHasCaughtUp(t *testing.T) {
	const after, rate, length = 5 * time.Second, 2, 100
	type wait struct{ each, consumer time.Duration }
	every := func(each, consumer time.Duration) (waits []wait) {
		return slices.Repeat([]wait{{each, consumer}}, length)
	}
	tests := map[string]struct {
		head  time.Duration // until the answer begins
		bytes []wait
		want  []told
	}{
		"just fast enough":                     {bytes: every(time.Second/rate, 0)},
		"a slow consumer is no fault":          {bytes: every(time.Millisecond, time.Minute)},
		"too slow":                             {bytes: every(1100*time.Millisecond, 0), want: []told{{true, 8500 * time.Millisecond}, {false, length * 1100 * time.Millisecond}}},
		"nothing comes":                        {bytes: every(time.Hour, 0), want: []told{{true, after}, {false, length * time.Hour}}},
		"the answer comes late, all of it":     {head: 8 * time.Second, bytes: every(0, 0), want: []told{{true, after}, {false, 8 * time.Second}}},
		"the answer comes late, but in time":   {head: after - 1, bytes: every(0, 0)},
		"it catches up, and falls back":        {head: 8 * time.Second, bytes: slices.Concat(every(0, 0)[:20], every(time.Hour, 0)[:80]), want: []told{{true, after}, {false, 8 * time.Second}, {true, 15 * time.Second}, {false, 8*time.Second + 80*time.Hour}}},
		"slow after a consumer's long silence": {bytes: slices.Concat(every(0, time.Minute)[:2], every(time.Hour, 0)[:98]), want: []told{{true, 2*time.Minute + after + time.Second}, {false, 2*time.Minute + 98*time.Hour}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var got []told
				w := newWatch(t.Context())
				w.arrears = newArrears(leastRate{rate, after}, func(slow bool) bool {
					got = append(got, told{slow, time.Since(began)})
					return true
				}, w.cancel)
				w.begin()
				time.Sleep(test.head)
				w.end(0)
				for _, b := range test.bytes {
					body := &watchedBody{name: "source", watch: w, idle: 2 * time.Hour, body: slow{bytes.NewReader(make([]byte, 1)), w, b.each}}
					if _, err := body.Read(make([]byte, 10)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(b.consumer)
				}
				w.close()
				w.close()
				synctest.Wait()
				if !slices.Equal(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
			})
		})
	}
}

func TestSourceThatMayNotBeSlowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 5 * time.Second
		began := time.Now()
		w := newWatch(t.Context())
		w.arrears = newArrears(leastRate{1, after}, func(slow bool) bool { return !slow }, w.cancel)
		body := &watchedBody{name: "source", watch: w, idle: time.Hour, body: slow{bytes.NewReader(make([]byte, 1)), w, time.Minute}}
		defer body.Close()
		_, err := io.ReadAll(body)
		f := failure.Of(err)
		if f == nil || f.Class != failure.Transient || f.Code != CodeSlow || !strings.Contains(err.Error(), "share of the slots") {
			t.Errorf("got %v", err)
		}
		if passed := time.Since(began); passed != after {
			t.Errorf("it took %s", passed)
		}
	})
}
