package batch_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// held is a loader whose loads wait to be let go.
type held struct {
	*batch.Loader[int, int]
	begun chan []int
	end   chan error
}

func hold() *held {
	h := &held{begun: make(chan []int), end: make(chan error)}
	h.Loader = batch.New(func(ctx context.Context, keys []int) (map[int]int, error) {
		slices.Sort(keys)
		h.begun <- keys
		select {
		case err := <-h.end:
			return squares(keys), err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	return h
}

// errBug is what a caller gets whose own load panicked.
var errBug = errors.New("bug")

func squares(keys []int) map[int]int {
	answers := make(map[int]int)
	for _, key := range keys {
		answers[key] = key * key
	}
	return answers
}

type answer struct {
	value int
	err   error
}

func (h *held) ask(ctx context.Context, key int) <-chan answer {
	answered := make(chan answer, 1)
	go func() {
		defer func() {
			if recover() != nil {
				answered <- answer{err: errBug}
			}
		}()
		value, err := h.Get(ctx, key)
		answered <- answer{value, err}
	}()
	return answered
}

func (a answer) want(t *testing.T, value int, err error) {
	t.Helper()
	if a.value != value || !errors.Is(a.err, err) {
		t.Errorf("got %d, %v; want %d, %v", a.value, a.err, value, err)
	}
}

// gather asks for keys while a load is under way, and returns when all of them
// wait for the next.
func (h *held) gather(t *testing.T, ctx context.Context, keys ...int) []<-chan answer {
	t.Helper()
	var list []<-chan answer
	for _, key := range keys {
		before := h.Waiting()
		list = append(list, h.ask(ctx, key))
		for h.Waiting() == before {
			runtime.Gosched()
		}
	}
	return list
}

func TestWhatIsAskedForDuringALoadIsLoadedTogetherAfterIt(t *testing.T) {
	t.Parallel()
	h := hold()
	first := h.ask(t.Context(), 1)
	if diff := cmp.Diff([]int{1}, <-h.begun); diff != "" {
		t.Error(diff)
	}
	// 1 again: what the running load has seen may be out of date.
	rest := h.gather(t, t.Context(), 3, 1, 2, 3)
	h.end <- nil
	(<-first).want(t, 1, nil)
	if diff := cmp.Diff([]int{1, 2, 3}, <-h.begun); diff != "" {
		t.Error(diff)
	}
	h.end <- nil
	for i, want := range []int{9, 1, 4, 9} {
		(<-rest[i]).want(t, want, nil)
	}
}

func TestAFailedLoadFailsOnlyThoseWhoAskedInIt(t *testing.T) {
	t.Parallel()
	h := hold()
	broken := errors.New("broken")
	first := h.ask(t.Context(), 1)
	<-h.begun
	second := h.gather(t, t.Context(), 2)[0]
	h.end <- broken
	(<-first).want(t, 1, broken)
	<-h.begun
	h.end <- nil
	(<-second).want(t, 4, nil)
}

func TestWhoStopsWaitingFailsNobodyElse(t *testing.T) {
	t.Parallel()
	h := hold()
	loads, stopLoading := context.WithCancel(t.Context())
	waits, stopWaiting := context.WithCancel(t.Context())
	first := h.ask(loads, 1)
	<-h.begun
	stops := h.gather(t, waits, 2)[0]
	goesOn := h.gather(t, t.Context(), 3)[0]
	stopWaiting()
	(<-stops).want(t, 0, context.Canceled)
	stopLoading() // its load is wanted by nobody else
	(<-first).want(t, 0, context.Canceled)
	<-h.begun
	h.end <- nil
	(<-goesOn).want(t, 9, nil)
}

func TestTheLoaderOfOthersStaysForThem(t *testing.T) {
	t.Parallel()
	h := hold()
	first := h.ask(t.Context(), 0)
	<-h.begun
	stopped, stop := context.WithCancel(t.Context())
	leaves := h.gather(t, stopped, 1)[0]
	stays := h.gather(t, t.Context(), 2)[0]
	h.end <- nil
	<-first
	<-h.begun
	stop() // whichever of the two loads, the other waits for it
	h.end <- nil
	(<-stays).want(t, 4, nil)
	<-leaves
}

func TestALoadThatNobodyWaitsForAnyMoreEnds(t *testing.T) {
	t.Parallel()
	h := hold()
	first := h.ask(t.Context(), 0)
	<-h.begun
	stopped, stop := context.WithCancel(t.Context())
	both := h.gather(t, stopped, 1, 2)
	h.end <- nil
	<-first
	<-h.begun
	stop()
	for _, left := range both {
		select {
		case a := <-left:
			a.want(t, 0, context.Canceled)
		case <-time.After(10 * time.Second):
			h.end <- nil
			t.Fatal("the load goes on, although both who wanted it have left")
		}
	}
}

// An answer of nothing would read as "there is none".
func TestAPanicFailsThoseWhoWaitForTheLoadToo(t *testing.T) {
	t.Parallel()
	begun, end := make(chan []int), make(chan error)
	h := &held{begun: begun, end: end, Loader: batch.New(func(_ context.Context, keys []int) (map[int]int, error) {
		if !slices.Contains(keys, 1) {
			panic("bug")
		}
		begun <- keys
		return squares(keys), <-end
	})}
	first := h.ask(t.Context(), 1)
	<-begun
	both := h.gather(t, t.Context(), 2, 3)
	end <- nil
	(<-first).want(t, 1, nil)
	bugs := 0
	for _, waited := range both {
		a := <-waited
		if errors.Is(a.err, errBug) {
			bugs++
		}
		if a.err == nil {
			t.Errorf("got %d and no error of a load that panicked", a.value)
		}
	}
	if bugs != 1 {
		t.Errorf("%d callers panicked, want the one that loaded", bugs)
	}
}

func TestAPanicIsItsOwnCallersAndTheNextLoadGoesOn(t *testing.T) {
	t.Parallel()
	bad := true
	l := batch.New(func(_ context.Context, keys []int) (map[int]int, error) {
		if bad {
			bad = false
			panic("bug")
		}
		return squares(keys), nil
	})
	func() {
		defer func() { _ = recover() }()
		_, _ = l.Get(t.Context(), 1)
	}()
	if value, err := l.Get(t.Context(), 3); value != 9 || err != nil {
		t.Errorf("got %d, %v", value, err)
	}
}

// TestEveryReadSeesWhatWasWrittenBeforeIt: each caller writes a key of its own
// and then reads it; some stop waiting, some loads fail.
func TestEveryReadSeesWhatWasWrittenBeforeIt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		callers := rapid.IntRange(1, 20).Draw(rt, "callers")
		failing := rapid.SliceOfN(rapid.Bool(), 8, 8).Draw(rt, "failing loads")
		stopping := rapid.SliceOfN(rapid.Bool(), callers, callers).Draw(rt, "who stops")
		broken := errors.New("broken")
		var written [20]atomic.Int64
		var loads, under atomic.Int64
		l := batch.New(func(ctx context.Context, keys []int) (map[int]int64, error) {
			if under.Add(1) > 1 {
				rt.Error("two loads at once")
			}
			defer under.Add(-1)
			if failing[loads.Add(1)%8] {
				return nil, fmt.Errorf("load: %w", broken)
			}
			found := make(map[int]int64)
			for _, key := range keys {
				found[key] = written[key].Load()
			}
			return found, ctx.Err()
		})
		var asking sync.WaitGroup
		for caller := range callers {
			asking.Go(func() {
				for round := int64(1); round <= 5; round++ {
					ctx, cancel := context.WithCancel(context.Background())
					if stopping[caller] {
						go cancel()
					}
					written[caller].Store(round)
					got, err := l.Get(ctx, caller)
					cancel()
					switch {
					case err == nil && got != round:
						rt.Errorf("caller %d read %d after it wrote %d", caller, got, round)
					case errors.Is(err, context.Canceled) && !stopping[caller]:
						rt.Errorf("caller %d was cancelled by another", caller)
					case err != nil && !errors.Is(err, broken) && !errors.Is(err, context.Canceled):
						rt.Errorf("caller %d: %v", caller, err)
					}
				}
			})
		}
		asking.Wait()
	})
}
