package worker_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// broken is a transport with a bug that requests of some kind bring out.
type broken struct {
	by     func(*http.Request) bool
	mended atomic.Bool
}

func (b *broken) RoundTrip(req *http.Request) (*http.Response, error) {
	if !b.mended.Load() && b.by(req) {
		panic("a bug")
	}
	return http.DefaultTransport.RoundTrip(req)
}

func ofSTS(req *http.Request) bool { return req.Method == http.MethodPost && req.URL.Path == "/" }
func ofS3(req *http.Request) bool  { return !ofSTS(req) }

// logged collects a worker's log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// brief fails for a log that tells of no panic, or at length.
func (l *logged) brief(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !strings.Contains(l.text.String(), "a bug") {
		t.Errorf("the log tells of no panic:\n%s", &l.text)
	}
	for line := range strings.Lines(l.text.String()) {
		if len(line) > 1000 || strings.Contains(line, "goroutine ") {
			t.Errorf("the log is flooded: %s", line)
		}
	}
}

func breaking(t *testing.T, db *database.DB, by func(*http.Request) bool) (*stage.Place, *broken, *logged) {
	s := stage.New(t, db)
	p := s.Customer("SERVICE#1", "customer-bucket", "media")
	transport, log := &broken{by: by}, &logged{}
	s.Config.Transport, s.Config.Logger = transport, slog.New(slog.NewTextHandler(log, nil))
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return p, transport, log
}

func TestAPanicFailsItsProbeAlone(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func(*http.Request) bool{"AssumeRole": ofSTS, "S3": ofS3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				p, transport, log := breaking(t, db, by)
				if err := p.Settings.Block(t.Context(), p.Integration().LaneID, "denied", "the customer's policy"); err != nil {
					t.Fatal(err)
				}
				p.Start()
				p.Await("the probe to fail", func() bool { return p.Integration().ProbeFailures > 0 })
				if i := p.Integration(); i.State != integration.Blocked || i.BlockedReason != "the customer's policy" {
					t.Errorf("the integration is %s by %q", i.State, i.BlockedReason)
				}
				transport.mended.Store(true)
				p.Set(integration.Change{Memo: new("try again")})
				p.Await("the integration to be released", func() bool { return p.Integration().State == integration.Active })
				log.brief(t)
			})
		})
	}
}

func TestAPanicFailsItsEventAlone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		p, _, log := breaking(t, db, func(req *http.Request) bool { return strings.HasSuffix(req.URL.Path, "/a.txt") })
		bad, good := p.Publish(p.Upload("m1", "a.txt", "one")), p.Publish(p.Upload("m2", "b.txt", "two"))
		p.Work()
		for id, want := range map[string]string{bad: "dead internal", good: "completed done"} {
			if e := p.Event(id); e.String() != want {
				t.Errorf("the event is %s, want %s", e, want)
			}
		}
		if e := p.Event(bad); e.Error == nil || len(*e.Error) > 1000 || e.AttemptCount != p.Config.RetryAttempts {
			t.Errorf("%d attempts, the error is %v", e.AttemptCount, e.Error)
		}
		log.brief(t)
	})
}
