package worker_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/worker"
)

// trickle is an https host whose answers go on byte by byte until they may end.
type trickle struct {
	*httptest.Server
	open atomic.Int64 // answers that go on
	end  chan struct{}
}

func newTrickle(t *testing.T) *trickle {
	t.Helper()
	h := &trickle{end: make(chan struct{})}
	h.Server = httptest.NewUnstartedServer(h)
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func (h *trickle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.open.Add(1)
	defer h.open.Add(-1)
	w.Header().Set("Content-Length", "1000000")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(w, "x"); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-h.end:
			return
		}
	}
}

// Customers whose https sources send a byte a second may have all slots before
// anything tells that their sources are slow. Another's upload is done while they
// go on, and they go on in half of the slots.
func TestSourcesThatTrickleLeaveSlotsToOtherCustomers(t *testing.T) {
	t.Parallel()
	const lanes, slots = 32, 64
	host := newTrickle(t)
	roots := x509.NewCertPool()
	roots.AddCert(host.Certificate())
	db := dbtest.SQLite(t)
	s := stage.New(t, db)
	s.Config.Concurrency, s.Config.LeaseDuration, s.Config.Logger = slots, time.Minute, slog.New(slog.DiscardHandler)
	for n := range lanes {
		p := s.Customer(fmt.Sprintf("SLOW%d", n), fmt.Sprintf("slow-bucket-%d", n), "media")
		for m := range 4 {
			p.Publish(events.MediaUploaded{MediaID: fmt.Sprint(m), FileName: fmt.Sprintf("%d.jpg", m), ContentType: "image/jpeg",
				Source: host.URL, Version: s.Version()})
		}
	}
	other := s.Customer("OTHER", "other-bucket", "media")
	w, err := worker.New(t.Context(), s.Config)
	if err != nil {
		t.Fatal(err)
	}
	sources, err := media.New(media.Options{
		FileRoot: s.Root, RootCAs: roots, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		// What would end them otherwise comes too late.
		RateGrace: time.Hour, SlowAfter: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.UseSources(sources)
	running, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(running) }()
	t.Cleanup(func() {
		close(host.end)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	s.Await("half of the slots", func() bool { return host.open.Load() >= slots/2 })

	upload := other.Publish(s.Upload("m1", "a.txt", "one"))
	s.Await("the other customer's upload", func() bool { return s.Event(upload).String() == "completed done" })
	s.Await("no more than half of the slots for those that trickle", func() bool { return host.open.Load() == slots/2 })
	var failures []string
	if err := db.SelectContext(t.Context(), &failures, db.SQL(`SELECT error FROM {attempts} WHERE error IS NOT NULL`)); err != nil {
		t.Fatal(err)
	}
	for _, text := range failures {
		if !strings.Contains(text, "slow transfers have their share of the slots already") {
			t.Errorf("one ended otherwise: %s", text)
		}
	}
}
