package history_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/worker"
)

// hand is a worker with ways of its own to the database and to S3.
type hand struct {
	crew *crew
	name string

	db        *database.DB
	wire      *outlet // nil on SQLite
	s3        *cable
	transport *http.Transport
	cancel    context.CancelFunc
	done      chan error
	killed    chan struct{}
	die       sync.Once

	// thawed is closed when a frozen worker goes on; nil when it moves. The crew's
	// lock guards it.
	thawed chan struct{}
}

var errNoAnswer = errors.New("the answer never arrives")

// start opens what the worker has of its own, and runs it.
func (h *hand) start() error {
	c := h.crew
	url := c.url
	var err error
	if c.stage.DB.Dialect == database.PostgreSQL {
		if h.wire, url, err = newOutlet(url); err != nil {
			return err
		}
	}
	if h.db, err = database.Open(context.Background(), url, database.DefaultSchema); err != nil {
		return err
	}
	if h.wire != nil {
		h.db.SetMaxOpenConns(5) // many workers share one server
	}
	h.transport = &http.Transport{DialContext: h.s3.dial}
	config := c.stage.Config
	config.DB, config.Name, config.Transport = h.db, h.name, h
	w, err := worker.New(context.Background(), config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.killed = cancel, make(chan struct{})
	go func() { h.done <- w.Run(ctx) }()
	return nil
}

// RoundTrip makes a call to AWS, which is the stand-in, and lets befall the
// worker what the crew's trap holds for it.
func (h *hand) RoundTrip(req *http.Request) (*http.Response, error) {
	c := h.crew
	if strings.HasPrefix(req.URL.Host, "sts.") {
		return h.transport.RoundTrip(c.detour(req, req.Context()))
	}
	fate := c.spring(h, req)
	switch fate {
	case killedBefore:
		h.kill()
		return nil, errNoAnswer
	case killed:
		// The call may arrive or not.
		go h.kill()
	case frozenBefore:
		h.freeze()
	}
	c.mu.Lock()
	thawed := h.thawed
	c.mu.Unlock()
	if thawed != nil && fate != frozenAfter {
		return h.hold(req, thawed)
	}
	res, err := h.transport.RoundTrip(c.detour(req, req.Context()))
	switch fate {
	case killedAfter:
		if err == nil {
			_ = res.Body.Close()
		}
		h.kill()
		return nil, errNoAnswer
	case frozenAfter:
		h.freeze()
	}
	return res, err
}

// changesObject tells a PUT, COPY or DELETE of one object.
func changesObject(req *http.Request) bool {
	return (req.Method == http.MethodPut || req.Method == http.MethodDelete) && len(req.URL.Path) > 1
}

// detour makes the stand-in AWS's address.
func (c *crew) detour(req *http.Request, ctx context.Context) *http.Request {
	req = req.Clone(ctx)
	req.Host = req.URL.Host
	req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(c.stage.AWS.Endpoint(), "http://")
	return req
}

// hold keeps the call of a frozen worker on its way.
func (h *hand) hold(req *http.Request, thawed <-chan struct{}) (*http.Response, error) {
	c := h.crew
	late := c.detour(req, context.Background())
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		_ = req.Body.Close()
		late.Body = io.NopCloser(bytes.NewReader(body))
	}
	if changesObject(req) {
		c.mu.Lock()
		c.late = append(c.late, late)
		c.mu.Unlock()
	}
	select {
	case <-thawed:
	case <-req.Context().Done():
	}
	return nil, errNoAnswer
}

// freeze makes the worker stand still for longer than its leases last. Its locks
// in the database stay its own, as the server sees no end of its connection.
func (h *hand) freeze() {
	c := h.crew
	h.wire.freeze()
	go func() {
		defer c.changing.Done()
		lapsed := time.NewTimer(c.stage.Config.LeaseDuration * 3 / 2)
		defer lapsed.Stop()
		<-lapsed.C
		c.mu.Lock()
		thawed := h.thawed
		h.thawed = nil
		c.mu.Unlock()
		c.note("%s goes on", h.name)
		h.wire.thaw()
		close(thawed)
	}()
}

// kill ends the worker as SIGKILL would: without another word to anybody.
func (h *hand) kill() {
	h.die.Do(func() {
		h.s3.cut()
		if h.wire != nil {
			h.wire.cut()
		} else {
			_ = h.db.Close()
		}
		h.cancel()
		close(h.killed)
	})
}

// end waits for the worker's end.
func (h *hand) end() error {
	err := <-h.done
	h.transport.CloseIdleConnections()
	h.s3.cut()
	_ = h.db.Close()
	if h.wire != nil {
		h.wire.close()
	}
	return err
}
