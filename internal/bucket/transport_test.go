package bucket_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestAGuardStopsEveryRequestAndRetry(t *testing.T) {
	t.Parallel()
	lost := errors.New("the lease is lost")
	t.Run("before the first", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, stored)
		ctx := bucket.WithGuard(t.Context(), func() error { return lost })
		_, err := w.bucket(t).Put(ctx, put(strings.NewReader("x"), 1))
		if f := failure.Of(err); f.Class != failure.Interrupted || !errors.Is(err, lost) {
			t.Errorf("%s: %v", f.Class, err)
		}
		if len(w.calls()) != 0 {
			t.Error("sent")
		}
	})
	t.Run("before a retry", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, s3Error(500, "InternalError", ""))
		guarded := 0
		ctx := bucket.WithGuard(t.Context(), func() error {
			if guarded++; guarded > 1 {
				return lost
			}
			return nil
		})
		_, err := w.bucket(t).Head(ctx, "media/a", false)
		if f := failure.Of(err); f.Class != failure.Interrupted {
			t.Errorf("%s: %v", f.Class, err)
		}
		if len(w.calls()) != 1 || guarded != 2 {
			t.Errorf("%d requests, %d asked", len(w.calls()), guarded)
		}
	})
}

func TestCancelledAndLateCallsAreToldApart(t *testing.T) {
	t.Parallel()
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	late := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 50*time.Millisecond)
	}
	cancelled := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, cancel
	}
	for _, tc := range []struct {
		name  string
		ctx   func(context.Context) (context.Context, context.CancelFunc)
		class failure.Class
		code  string
	}{
		{"late", late, failure.Transient, failure.Timeout},
		{"cancelled", cancelled, failure.Interrupted, failure.Canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, hang)
			ctx, cancel := tc.ctx(t.Context())
			defer cancel()
			_, err := w.bucket(t).Head(ctx, "media/a", false)
			if f := failure.Of(err); f.Class != tc.class || f.Code != tc.code {
				t.Errorf("%s %s: %v", f.Class, f.Code, err)
			}
		})
	}
}

func TestAServerThatStopsAnsweringOrReadingTimesOut(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var sent atomic.Int32
	w := newWire(t, nil)
	w.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form") {
			assumeRole(rw, r)
			return
		}
		sent.Add(1)
		rw.WriteHeader(http.StatusContinue)
		<-release
	})
	t.Cleanup(func() { close(release) })
	p := w.pool(t, func(o *bucket.Options) { o.StallTimeout = 100 * time.Millisecond })
	b, err := p.Bucket(account)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 1 << 30} {
		_, err := b.Put(t.Context(), put(io.LimitReader(&counted{}, int64(size)), size))
		if f := failure.Of(err); f.Class != failure.Transient || f.Code != failure.Timeout {
			t.Errorf("%d bytes: %s %s: %v", size, f.Class, f.Code, err)
		}
	}
	if _, err := b.Head(t.Context(), "media/a", false); failure.Of(err).Code != failure.Timeout {
		t.Errorf("HEAD: %v", err)
	}
	if n := sent.Load(); n != 3 {
		t.Errorf("%d requests: a stall was tried again", n)
	}
}

func TestOneCustomersTroubleLeavesTheOthersTheirRetries(t *testing.T) {
	t.Parallel()
	w := newWire(t, nil)
	healthy := map[string]bool{}
	var mu sync.Mutex
	w.s3 = func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(r.URL.Path, "/healthy/") && healthy[r.URL.Path] {
			noContent(rw, r)
			return
		}
		healthy[r.URL.Path] = true
		s3Error(500, "InternalError", "")(rw, r)
	}
	p := w.pool(t)
	of := func(name string) *bucket.Bucket {
		a := account
		a.Bucket = name
		b, err := p.Bucket(a)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	broken, fine := of("broken"), of("healthy")
	var all sync.WaitGroup
	for range 40 { // 500 tokens at 14 a retry are gone after 35
		all.Go(func() { broken.Delete(t.Context(), "media/a", "e") })
	}
	all.Wait()
	if err := fine.Delete(t.Context(), "media/a", "e"); err != nil {
		t.Error(err)
	}
}
