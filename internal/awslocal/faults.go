package awslocal

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Rule makes calls fail, wait or be watched. It sees a call that is
// authenticated, authorised and received whole, just before its effect; a
// call that AWS would have refused anyway is not counted against it.
type Rule struct {
	// API, Bucket, Key and Role select calls by pattern (* and ?); an empty
	// one selects all. See Call for what they mean.
	API, Bucket, Key, Role string
	// Match selects further, when set.
	Match func(Call) bool
	// Skip lets that many selected calls pass first.
	Skip int
	// Times bounds how many calls the rule touches; 0 is no bound.
	Times int

	// Before runs before everything else that the rule does. Its context ends
	// when the client gives up or the server closes.
	Before func(context.Context, Call)
	// Delay holds the call up.
	Delay time.Duration

	// AfterEffect has the call take effect before the rest of the rule: with
	// Reset, the response is lost.
	AfterEffect bool
	// Hang waits until the client gives up or the rule is removed, then ends
	// the connection.
	Hang bool
	// Reset ends the connection without an answer.
	Reset bool
	// Status, Code and Message answer in place of the effect. A Code without
	// a Status is a 400.
	Status        int
	Code, Message string
	// Body is sent as it is with Status, in place of an error document: an
	// empty or broken 200.
	Body *string
	// CutBody ends the connection after so many bytes of a GET's body.
	CutBody int64
}

// Injection is a rule at work.
type Injection struct {
	rule    Rule
	api     pattern
	bucket  pattern
	key     pattern
	role    pattern
	set     *faultSet
	removed chan struct{}

	// Under the set's lock.
	seen, hits int
}

type faultSet struct {
	mu    sync.Mutex
	rules []*Injection
}

// Inject puts a rule to work until it is removed. Rules are asked in the order
// of their injection, and the first that takes a call decides it.
func (s *Server) Inject(rule Rule) *Injection {
	everything := func(text string) pattern {
		if text == "" {
			text = "*"
		}
		return compile(text, false)
	}
	injected := &Injection{
		rule: rule, set: &s.faults, removed: make(chan struct{}),
		api: everything(rule.API), bucket: everything(rule.Bucket), key: everything(rule.Key), role: everything(rule.Role),
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.rules = append(s.faults.rules, injected)
	return injected
}

// Remove ends the rule; calls that hang by it are let go. It may be called
// more than once.
func (i *Injection) Remove() {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	at := slices.Index(i.set.rules, i)
	if at >= 0 {
		i.set.rules = slices.Delete(i.set.rules, at, at+1)
		close(i.removed)
	}
}

// Hits is how many calls the rule has touched.
func (i *Injection) Hits() int {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	return i.hits
}

// ClearFaults removes all rules.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	rules := slices.Clone(s.faults.rules)
	s.faults.mu.Unlock()
	for _, rule := range rules {
		rule.Remove()
	}
}

func (f *faultSet) take(c Call) *Injection {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.rules {
		if i.takes(c) {
			return i
		}
	}
	return nil
}

// takes counts the call. The caller holds the set's lock.
func (i *Injection) takes(c Call) bool {
	if i.rule.Times > 0 && i.hits == i.rule.Times {
		return false
	}
	if !i.api.match(c.API) || !i.bucket.match(c.Bucket) || !i.key.match(c.Key) || !i.role.match(c.Role) {
		return false
	}
	if i.rule.Match != nil && !i.rule.Match(c) {
		return false
	}
	i.seen++
	if i.seen <= i.rule.Skip {
		return false
	}
	i.hits++
	return true
}

// faulted has the effect as the rules want it.
func (s *Server) faulted(c *call, effect func() (*response, error)) (*response, error) {
	injected := s.faults.take(c.Call)
	if injected == nil {
		return effect()
	}
	rule := injected.rule
	if rule.Before != nil {
		rule.Before(c.ctx, c.Call)
	}
	if rule.Delay > 0 {
		timer := time.NewTimer(rule.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ctx.Done():
			return nil, errGone
		}
	}
	var res *response
	if rule.AfterEffect || !rule.replaces() {
		var err error
		if res, err = effect(); err != nil {
			return nil, err
		}
		res.cut = rule.CutBody
	}
	if !rule.replaces() {
		return res, nil
	}
	if res != nil && res.stream != nil {
		_ = res.stream.Close()
	}
	if rule.Hang {
		select {
		case <-c.ctx.Done():
		case <-injected.removed:
		}
	}
	return rule.answer(c), nil
}

// replaces tells whether the rule answers in the effect's stead.
func (r *Rule) replaces() bool {
	return r.Hang || r.Reset || r.Status != 0 || r.Code != ""
}

func (r *Rule) answer(c *call) *response {
	switch {
	case r.Hang || r.Reset:
		return &response{reset: true, code: "ConnectionReset"}
	case r.Body != nil:
		return &response{status: r.Status, header: http.Header{"Content-Type": {"application/xml"}}, body: []byte(*r.Body)}
	}
	status, code, message := r.Status, r.Code, r.Message
	if status == 0 {
		status = http.StatusBadRequest
	}
	if code == "" {
		code = http.StatusText(status)
	}
	if message == "" {
		message = "Injected by a rule."
	}
	return fail(status, code, "%s", message).response(c)
}
