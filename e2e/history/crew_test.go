package history_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/worker"
)

// mishap is what befalls a worker at one of its calls to S3.
type mishap string

const (
	killedBefore mishap = "killed before"
	killedAfter  mishap = "killed after"
	// It stands still for longer than its leases: with the call on its way, or
	// with the answer in hand.
	frozenBefore mishap = "frozen before"
	frozenAfter  mishap = "frozen after"
)

// trap waits for a worker to make its call.
type trap struct {
	mishap mishap
	skip   int // calls
}

// crew are the workers of one installation. Whoever is killed is replaced.
type crew struct {
	*stage.Stage
	url string

	mu     sync.Mutex
	hired  int
	alive  map[*hand]bool
	gone   []*hand
	traps  []*trap
	late   []*http.Request // of frozen workers, on their way
	faults []string
	// befell says what befell whom, and when.
	befell []string
	// effects says when calls began that changed a bucket, by their event's
	// sequence.
	effects map[int64][]int64
	// changing waits for replacements, and for frozen workers to thaw.
	changing sync.WaitGroup
	clock    atomic.Int64
	// post delivers what is late.
	post *http.Transport
}

func newCrew(s *stage.Stage, url string, size int) *crew {
	c := &crew{Stage: s, url: url, alive: make(map[*hand]bool), effects: make(map[int64][]int64), post: &http.Transport{}}
	c.T.Cleanup(c.dismiss)
	for range size {
		c.hire()
	}
	return c
}

// hire starts a worker. On SQLite the one before must have ended.
func (c *crew) hire() {
	c.mu.Lock()
	c.hired++
	h := &hand{crew: c, name: fmt.Sprintf("worker %d", c.hired), s3: newCable(), done: make(chan error, 1)}
	c.mu.Unlock()
	if err := h.start(); err != nil {
		c.fault("%s could not start: %v", h.name, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[h] = true
}

func (c *crew) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// clock is the time of day as the database's columns have it.
func clock() string { return fmt.Sprint(time.Now().UnixMicro()) }

// effect notes a call that changed a bucket.
func (c *crew) effect(sequence, began int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.effects[sequence] = append(c.effects[sequence], began)
}

// faulty has what workers did that they must not.
func (c *crew) faulty() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.faults)
}

func (c *crew) set(t trap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.traps = append(c.traps, &t)
}

// spring tells what befalls a worker that is about to make a call.
func (c *crew) spring(h *hand, req *http.Request) mishap {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.traps) == 0 || !c.alive[h] || h.thawed != nil {
		return ""
	}
	t := c.traps[0]
	freezes := t.mishap == frozenBefore || t.mishap == frozenAfter
	if freezes && !changesObject(req) {
		return ""
	}
	if t.skip--; t.skip >= 0 {
		return ""
	}
	c.traps = c.traps[1:]
	switch {
	case freezes && !c.anotherThan(h):
		return "" // nobody could take over
	case freezes:
		h.thawed = make(chan struct{})
		c.changing.Add(1)
	default:
		delete(c.alive, h)
		c.gone = append(c.gone, h)
		c.changing.Go(func() { c.replace(h) })
	}
	c.befell = append(c.befell, fmt.Sprintf("%s %s was %s %s %s", clock(), h.name, t.mishap, req.Method, req.URL.Path))
	return t.mishap
}

// anotherThan tells whether somebody else lives and moves.
func (c *crew) anotherThan(h *hand) bool {
	for other := range c.alive {
		if other != h && other.thawed == nil {
			return true
		}
	}
	return false
}

// replace hires somebody in place of the killed worker.
func (c *crew) replace(h *hand) {
	if h.db.Dialect == database.SQLite {
		<-h.killed
		<-h.done
		h.done <- nil
	}
	c.hire()
}

// steady ends all trouble, and waits until replacements have begun and frozen
// workers go on.
func (c *crew) steady() {
	c.mu.Lock()
	c.traps = nil
	c.mu.Unlock()
	c.AWS.ClearFaults() // calls that hang end
	c.changing.Wait()
}

// awaitLapse waits until others have taken over what a frozen worker had. What
// it has locked in the database stays its own, as its server sees no end of
// its connection.
func (c *crew) awaitLapse(h *hand) error {
	const left = `SELECT (SELECT count(*) FROM {lanes} WHERE leased_by = ? AND leased_until >= {now})
		+ (SELECT count(*) FROM (SELECT 1 FROM {lanes} WHERE leased_by = ? {skip_locked}) AS free)`
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		var n int
		if err := c.DB.Get(&n, c.DB.SQL(left), h.name, h.name); err != nil || n == 0 {
			return err
		}
	}
	return errors.New("nobody took over its lanes\n" + c.Dump())
}

// dismiss ends all workers, the killed ones too.
func (c *crew) dismiss() {
	c.steady()
	c.stop()
	for _, h := range c.gone {
		h.end()
	}
	c.gone = nil
	c.post.CloseIdleConnections()
}

// stop drains those who live.
func (c *crew) stop() {
	c.mu.Lock()
	living := c.alive
	c.alive = make(map[*hand]bool)
	c.mu.Unlock()
	for h := range living {
		h.cancel()
		if err := h.end(); err != nil {
			c.fault("%s failed: %v", h.name, err)
		}
	}
}

// deliverLate lets the calls arrive that frozen workers had sent. Where the
// condition of a call happens to hold, as nothing else stands at its key, no
// condition could stop it: it gets lost.
func (c *crew) deliverLate() {
	c.mu.Lock()
	late := c.late
	c.late = nil
	c.mu.Unlock()
	for _, req := range late {
		if c.meets(req) {
			continue
		}
		res, err := c.post.RoundTrip(req)
		if err != nil {
			c.fault("a late call didn't arrive: %v", err)
			continue
		}
		_ = res.Body.Close()
	}
}

// meets tells whether a call has a condition that holds.
func (c *crew) meets(req *http.Request) bool {
	bucketName, _, _ := strings.Cut(req.Host, ".")
	object, _, err := c.AWS.GetDirect(bucketName, strings.TrimPrefix(req.URL.Path, "/"))
	if req.Header.Get("If-None-Match") != "" {
		return err != nil
	}
	etag := req.Header.Get("If-Match")
	return etag != "" && err == nil && strings.Trim(object.ETag, `"`) == strings.Trim(etag, `"`)
}

// start opens what the worker has of its own, and runs it.
func (h *hand) start() error {
	c := h.crew
	url := c.url
	var err error
	if c.DB.Dialect == database.PostgreSQL {
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
	config := c.Config
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
