package bucket_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// pausing is an endless source that gives nothing more after so many bytes,
// until it may go on.
type pausing struct {
	left int
	goOn <-chan struct{}
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.left == 0 {
		<-p.goOn
		return len(b), nil
	}
	n := min(len(b), p.left)
	p.left -= n
	return n, nil
}

// answering tells when a PUT has its answer.
type answering struct {
	*http.Transport
	answered func()
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		defer time.AfterFunc(100*time.Millisecond, a.answered) // when the answer has been passed on
	}
	return a.Transport.RoundTrip(r)
}

// S3 ends a connection on which nothing came for some 20 seconds.
func TestASourceThatPausesIsNotTheBucketsFault(t *testing.T) {
	t.Parallel()
	for name, paused := range map[string]bool{"the source pauses": true, "S3 is slow": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const half, size = 1 << 20, 4 << 20
			goOn := make(chan struct{})
			w := newWire(t, nil)
			w.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form") {
					assumeRole(rw, r)
					return
				}
				io.ReadFull(r.Body, make([]byte, half))
				if !paused {
					io.Copy(io.Discard, r.Body)
				}
				s3Error(400, "RequestTimeout", "Your socket connection to the server was not read from or written to within the timeout period.")(rw, r)
			})
			p := w.pool(t, func(o *bucket.Options) {
				o.Transport = answering{http.DefaultTransport.(*http.Transport).Clone(), func() { close(goOn) }} //nolint:forcetypeassert // the standard library's own
			})
			b, err := p.Bucket(account)
			if err != nil {
				t.Fatal(err)
			}
			body := io.LimitReader(&pausing{half, goOn}, size)
			want := failure.SourceSlow
			if !paused {
				body, want = io.LimitReader(&counted{}, size), failure.Timeout
			}
			_, err = b.Put(t.Context(), put(body, size))
			if f := failure.Of(err); f == nil || f.Class != failure.Transient || f.Code != want {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestASourceThatLastsLongerThanTheAttemptIsNotTheBucketsFault(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	_, err := w.bucket(t).Put(t.Context(), put(errReader{context.DeadlineExceeded}, 4<<20))
	if f := failure.Of(err); f == nil || f.Class != failure.Transient || f.Code != failure.SourceSlow || !f.Slows() {
		t.Errorf("got %v", err)
	}
}
