package history_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/outbox"
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

	// thawed is closed when a frozen worker goes on; nil when none. goesOn is
	// when it last did. Both are under the crew's lock.
	thawed chan struct{}
	goesOn time.Time
}

var errNoAnswer = errors.New("the answer never arrives")

// RoundTrip makes a call to AWS, which is the stand-in, and lets befall the
// worker what the crew's traps hold for it.
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
	case frozenBefore:
		h.freeze()
	}
	c.mu.Lock()
	thawed, goesOn := h.thawed, h.goesOn
	c.mu.Unlock()
	if thawed != nil && fate != frozenAfter {
		return h.hold(req, thawed)
	}
	d, ofEvent := outbox.DeliveryFrom(req.Context())
	if ofEvent && d.Started.Before(goesOn) {
		c.fault("%s sent %s %s for event %d although its lease had lapsed", h.name, req.Method, req.URL.Path, d.Event.Sequence)
	}
	began := c.clock.Add(1)
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
	if err == nil && ofEvent && req.Method != http.MethodGet && req.Method != http.MethodHead && res.StatusCode < 300 {
		c.effect(d.Event.Sequence, began)
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
	req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(c.AWS.Endpoint(), "http://")
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

// freeze makes the worker stand still until others have taken over its lanes.
func (h *hand) freeze() {
	c := h.crew
	h.wire.freeze()
	go func() {
		defer c.changing.Done()
		if err := c.awaitLapse(h); err != nil {
			c.fault("%s was frozen: %v", h.name, err)
		}
		c.mu.Lock()
		thawed := h.thawed
		h.thawed, h.goesOn = nil, time.Now()
		c.befell = append(c.befell, fmt.Sprintf("%s %s goes on", clock(), h.name))
		c.mu.Unlock()
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
