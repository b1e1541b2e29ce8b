package awslocal

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Entry is one call in the request log.
type Entry struct {
	Call
	Time      time.Time
	RequestID string
	// Status is 0 where the connection was reset.
	Status int
	// Code is the error's, empty on success.
	Code string
	// Header holds what matters of the request: conditions, content type and
	// length, and x-amz headers without credentials.
	Header http.Header
	// Query holds a listing's arguments.
	Query map[string][]string
}

// Refusal is something asked for without the right to it; a test of least
// privilege expects none.
type Refusal struct {
	Call
	Time time.Time
	Code string
	// Reason says more than the caller was told.
	Reason string
}

// journal counts and remembers calls.
type journal struct {
	mu       sync.Mutex
	total    map[string]int
	byBucket map[string]map[string]int
	byRole   map[string]map[string]int
	entries  ring[Entry]
	refused  ring[Refusal]
}

func (j *journal) reset() {
	j.total = map[string]int{}
	j.byBucket = map[string]map[string]int{}
	j.byRole = map[string]map[string]int{}
	j.entries.items, j.entries.next = nil, 0
	j.refused.items, j.refused.next = nil, 0
}

func (j *journal) record(c *call, res *response) {
	entry := Entry{
		Call: c.Call, Time: c.received, RequestID: c.requestID, Status: res.status, Code: res.code,
		Header: noted(c.r.Header), Query: c.query,
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.total[c.API]++
	count(j.byBucket, c.Bucket, c.API)
	count(j.byRole, c.Role, c.API)
	j.entries.add(entry)
}

func count(by map[string]map[string]int, name, api string) {
	if name == "" {
		return
	}
	if by[name] == nil {
		by[name] = map[string]int{}
	}
	by[name][api]++
}

func (j *journal) refuse(c *call, key string, err *apiError) {
	refusal := Refusal{Call: c.Call, Time: c.received, Code: err.code, Reason: err.reason}
	refusal.Key = key
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refused.add(refusal)
}

// noted leaves out what signs a call: nothing secret gets into the log.
func noted(header http.Header) http.Header {
	kept := http.Header{}
	for name, values := range header {
		switch {
		case name == "X-Amz-Security-Token":
		case strings.HasPrefix(name, "X-Amz-"), strings.HasPrefix(name, "If-"), strings.HasPrefix(name, "Content-"), name == "Range", name == "Cache-Control":
			kept[name] = values
		}
	}
	return kept
}

// ring keeps the newest items.
type ring[T any] struct {
	limit int
	items []T
	next  int // where the oldest is, once full
}

func (r *ring[T]) add(item T) {
	if len(r.items) < r.limit {
		r.items = append(r.items, item)
		return
	}
	r.items[r.next] = item
	r.next = (r.next + 1) % r.limit
}

func (r *ring[T]) all() []T { return slices.Concat(r.items[r.next:], r.items[:r.next]) }

// Counts is how often each API was called, refused and failed calls included.
func (s *Server) Counts() map[string]int {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return maps.Clone(s.journal.total)
}

// BucketCounts is Counts for the calls to one bucket; a COPY counts at its
// destination.
func (s *Server) BucketCounts(bucket string) map[string]int {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return cloneOrEmpty(s.journal.byBucket[bucket])
}

// RoleCounts is Counts for the calls of one role's sessions, and for those
// that asked to assume it.
func (s *Server) RoleCounts(arn string) map[string]int {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return cloneOrEmpty(s.journal.byRole[arn])
}

func cloneOrEmpty(counts map[string]int) map[string]int {
	if counts == nil {
		return map[string]int{}
	}
	return maps.Clone(counts)
}

// Log returns the newest calls, oldest first.
func (s *Server) Log() []Entry {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return s.journal.entries.all()
}

// Refused returns the newest refusals, oldest first.
func (s *Server) Refused() []Refusal {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return s.journal.refused.all()
}

// ResetCounts forgets all counts, the log and the refusals.
func (s *Server) ResetCounts() {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	s.journal.reset()
}
