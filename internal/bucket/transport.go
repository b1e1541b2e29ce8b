package bucket

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
)

type guardKey struct{}

// WithGuard has guard called just before each HTTP request to S3, the SDK's own
// retries included. Its error stops the request, as interrupted work: that is
// how a worker which lost its lease sends nothing more.
func WithGuard(ctx context.Context, guard func() error) context.Context {
	return context.WithValue(ctx, guardKey{}, guard)
}

// withoutGuard is for calls that aren't one event's own: a shared AssumeRole,
// a probe's cleaning up.
func withoutGuard(ctx context.Context) context.Context {
	return context.WithValue(ctx, guardKey{}, (func() error)(nil))
}

type guardedTransport struct{ base http.RoundTripper }

func (t guardedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	guard, _ := req.Context().Value(guardKey{}).(func() error)
	if guard != nil {
		if err := guard(); err != nil {
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, failure.New(failure.Interrupted, failure.Canceled, "not sent: %w", err)
		}
	}
	// The SDK leaves the version out, and net/http then sends the SDK's
	// "Expect: 100-continue" without waiting for the answer: a refused upload
	// would be sent to its last byte, and often end as a reset connection.
	req = req.WithContext(req.Context())
	req.Proto, req.ProtoMajor, req.ProtoMinor = "HTTP/1.1", 1, 1
	answer, err := t.base.RoundTrip(req)
	if s, ok := req.Context().Value(sourceKey{}).(*source); ok && s.reading.Load() {
		s.late.Store(true)
	}
	return answer, err
}

// newTransport is shared by all customers. It speaks HTTP/1.1, as S3 does: one
// slow answer then delays nobody else's. Proxies are those that the operator
// set in the environment.
func newTransport(stall time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &stallConn{Conn: conn, timeout: stall}, nil
		},
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          1024,
		MaxIdleConnsPerHost:   128,
		IdleConnTimeout:       min(30*time.Second, stall),
		WriteBufferSize:       64 << 10,
		DisableCompression:    true,
	}
}

// stallConn gives up a connection on which nothing moved for a while. A 5 GB
// upload may take its time, so there is no limit on the whole; and waiting for
// an answer counts from the last byte sent.
type stallConn struct {
	net.Conn
	timeout time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// ReadFrom is Write of all that the reader has, through a buffer that is kept.
func (c *stallConn) ReadFrom(r io.Reader) (int64, error) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, buffer[:])
}

func (c *stallConn) Write(p []byte) (int, error) {
	// The answer's read is already waiting. Its time begins anew after each
	// write, and doesn't run out during one: that would hide whose fault it is.
	if err := cmp.Or(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Now().Add(c.timeout))); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	return n, cmp.Or(err, c.SetReadDeadline(time.Now().Add(c.timeout)))
}
