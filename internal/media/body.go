package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
)

// watch ends a remote source that keeps us waiting. Its context is the one to
// send requests with.
type watch struct {
	ctx    context.Context
	caller context.Context
	cancel context.CancelCauseFunc
	// overall is the limit of the whole transfer, nil where there is none.
	overall *time.Timer
	// arrears is nil where nobody wants to know whether the source is slow.
	arrears *arrears
}

// errWaited is the cause when the watch, not the caller, ended a transfer.
type errWaited struct {
	what  string
	limit time.Duration
}

func (e errWaited) Error() string {
	return fmt.Sprintf("%s within %s", e.what, e.limit.Round(time.Millisecond))
}

func (s *Sources) newWatch(ctx context.Context, upload Upload) *watch {
	w := newWatch(ctx)
	if upload.Slow != nil {
		w.arrears = newArrears(leastRate{s.options.MinRate, s.options.SlowAfter}, upload.Slow, w.cancel)
	}
	return w
}

func newWatch(ctx context.Context) *watch {
	watched, cancel := context.WithCancelCause(ctx)
	return &watch{ctx: watched, caller: ctx, cancel: cancel}
}

// begin and end enclose each wait for the source.
func (w *watch) begin() {
	if w.arrears != nil {
		w.arrears.begin()
	}
}

func (w *watch) end(received int) {
	if w.arrears != nil {
		w.arrears.end(received)
	}
}

// limit cancels the context unless the timer is stopped in time.
func (w *watch) limit(limit time.Duration, what string) *time.Timer {
	return w.endAfter(limit, errWaited{what, limit})
}

func (w *watch) endAfter(wait time.Duration, cause errWaited) *time.Timer {
	return time.AfterFunc(wait, func() { w.cancel(cause) })
}

// ended tells why the context ended, or nil when it hasn't.
func (w *watch) ended(name string) error {
	if w.caller.Err() != nil {
		return fmt.Errorf("reading %s: %w", name, contextError(w.caller))
	}
	var waited errWaited
	if errors.As(context.Cause(w.ctx), &waited) {
		return tooSlow("%s: %s", name, waited)
	}
	return nil
}

func (w *watch) close() {
	if w.overall != nil {
		w.overall.Stop()
	}
	if w.arrears != nil {
		w.arrears.close()
	}
	w.cancel(nil)
}

// watchedBody is a remote body: each read is bounded in time, and what breaks
// it off is transient. Only the time spent in reads counts: how slowly the
// consumer takes them is no fault of the source.
type watchedBody struct {
	name  string
	body  io.ReadCloser
	watch *watch
	idle  time.Duration
	least leastRate

	received int64
	waited   time.Duration
}

// leastRate is how many bytes a second a source must send on average, apart
// from the grace at its beginning; the zero value asks for nothing.
type leastRate struct {
	perSecond int64
	grace     time.Duration
}

// within is how long the first bytes of that number may take.
func (r leastRate) within(bytes int64) time.Duration {
	return r.grace + time.Duration(float64(bytes)/float64(r.perSecond)*float64(time.Second))
}

func (r leastRate) String() string {
	return fmt.Sprintf("%s a second (OWNBUCKET_SOURCE_MIN_RATE)", humanize.IBytes(uint64(r.perSecond)))
}

func (b *watchedBody) Read(p []byte) (int, error) {
	started := time.Now()
	waiting := b.patience()
	b.watch.begin()
	n, err := b.body.Read(p)
	b.watch.end(n)
	waiting.Stop()
	b.waited += time.Since(started)
	b.received += int64(n)
	if err == nil {
		return n, nil
	}
	// An end in order too: see get.
	if ended := b.watch.ended(b.name); ended != nil {
		return n, ended
	}
	if err == io.EOF {
		return n, io.EOF
	}
	return n, unavailable("%s broke off: %s", b.name, networkReason(err))
}

// patience bounds the next read: by the silence that is allowed, and by the
// time that is left until the source is below its least rate.
func (b *watchedBody) patience() *time.Timer {
	if b.least.perSecond > 0 {
		limit := b.least.within(b.received)
		if left := limit - b.waited; left < b.idle {
			return b.watch.endAfter(left, errWaited{"sent on average less than " + b.least.String(), limit})
		}
	}
	return b.watch.limit(b.idle, "sent nothing")
}

func (b *watchedBody) Close() error {
	b.watch.close()
	return b.body.Close()
}

// openEnded tells whether nothing but the connection's end delimits an
// answer's body (RFC 9112, 6.3).
func openEnded(response *http.Response) bool {
	return response.ContentLength < 0 && response.ProtoMajor < 2 && !slices.Contains(response.TransferEncoding, "chunked")
}

// networkReason is what of a network error is safe to show: no addresses of
// ours, and no text that the other side chose, which may echo a signed URL.
func networkReason(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "the connection ended too early"
	case errors.As(err, &dns):
		return "the host's name can't be looked up"
	case errors.As(err, &op):
		return op.Err.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	default:
		return "the answer can't be read"
	}
}
