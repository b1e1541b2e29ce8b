package history_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/ownbucket/ownbucket/internal/database"
)

// mishap is what befalls a worker, most often at one of its calls to S3.
type mishap string

const (
	killed       mishap = "killed while"
	killedBefore mishap = "killed before"
	killedAfter  mishap = "killed after"
	// A frozen worker stands still for longer than its leases: with the call on
	// its way, or with the answer in hand.
	frozenBefore mishap = "frozen before"
	frozenAfter  mishap = "frozen after"
)

// trap waits for a worker to make its call. It counts calls, not time, so that
// the workers get on whatever befalls them.
type trap struct {
	mishap mishap
	skip   int // calls
}

// crew are the workers of one installation. A killed one is replaced.
type crew struct {
	*history
	url string

	mu    sync.Mutex
	hired int
	alive map[*hand]bool
	gone  []*hand
	trap  *trap
	late  []*http.Request // of frozen workers, on their way
	// changing waits for replacements, and for frozen workers to thaw.
	changing sync.WaitGroup
	// post delivers what is late.
	post *http.Transport
}

func newCrew(h *history, url string) *crew {
	c := &crew{history: h, url: url, alive: make(map[*hand]bool), post: &http.Transport{}}
	h.stage.T.Cleanup(c.dismiss)
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

// set sets a trap, unless there is one.
func (c *crew) set(t trap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trap == nil {
		c.trap = &t
	}
}

// disarm takes the trap away.
func (c *crew) disarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trap = nil
}

// spring tells what befalls a worker that is about to make a call.
func (c *crew) spring(h *hand, req *http.Request) mishap {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trap == nil || !c.alive[h] || h.thawed != nil {
		return ""
	}
	mishap := c.trap.mishap
	freezes := mishap == frozenBefore || mishap == frozenAfter
	if freezes && !changesObject(req) {
		return ""
	}
	if c.trap.skip--; c.trap.skip >= 0 {
		return ""
	}
	c.trap = nil
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
	c.note("%s is %s %s %s", h.name, mishap, req.Method, req.URL.Path)
	return mishap
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
	c.disarm()
	c.stage.AWS.ClearFaults() // calls that hang end
	c.changing.Wait()
}

// dismiss ends all workers, the killed ones too. Then it lets arrive what frozen
// ones had sent.
func (c *crew) dismiss() {
	c.steady()
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
	for _, h := range c.gone {
		h.end()
	}
	c.gone = nil
	c.deliverLate()
	c.post.CloseIdleConnections()
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
	object, _, err := c.stage.AWS.GetDirect(bucketName, strings.TrimPrefix(req.URL.Path, "/"))
	if req.Header.Get("If-None-Match") != "" {
		return err != nil
	}
	etag := req.Header.Get("If-Match")
	return etag != "" && err == nil && strings.Trim(object.ETag, `"`) == strings.Trim(etag, `"`)
}
