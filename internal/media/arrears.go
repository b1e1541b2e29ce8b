package media

import (
	"context"
	"sync"
	"time"
)

// arrears tells of a source that it is slow while it is waited for: it has fallen
// behind a least rate for longer than that one's grace. It has caught up when it
// is no longer behind at all.
type arrears struct {
	least  leastRate
	tell   func(slow bool) bool
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	onset    *time.Timer // runs during a wait, until the source becomes slow
	since    time.Time   // when the wait began; zero between waits
	waited   time.Duration
	received int64
	slow     bool
}

func newArrears(least leastRate, tell func(slow bool) bool, cancel context.CancelCauseFunc) *arrears {
	a := &arrears{least: least, tell: tell, cancel: cancel}
	a.onset = time.AfterFunc(time.Hour, a.fellBehind)
	a.onset.Stop()
	return a
}

func (a *arrears) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since = time.Now()
	if !a.slow {
		a.onset.Reset(a.least.within(a.received) - a.waited)
	}
}

func (a *arrears) end(received int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onset.Stop()
	if a.since.IsZero() {
		return // closed meanwhile
	}
	a.waited += time.Since(a.since)
	a.received += int64(received)
	a.since = time.Time{}
	if a.waited <= a.least.within(a.received)-a.least.grace {
		a.caughtUp()
	}
}

// fellBehind is called by the timer, which may be late: then the wait is over,
// perhaps the next one has begun.
func (a *arrears) fellBehind() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.slow || a.since.IsZero() || a.waited+time.Since(a.since) < a.least.within(a.received) {
		return
	}
	a.slow = true
	if !a.tell(true) {
		a.cancel(errWaited{"slow transfers have their share of the slots already, and this one sent too little", a.least.grace})
	}
}

// caughtUp ends being slow. The mutex is held.
func (a *arrears) caughtUp() {
	if a.slow {
		a.slow = false
		a.tell(false)
	}
}

// close is called when the source isn't waited for any more.
func (a *arrears) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onset.Stop()
	a.since = time.Time{}
	a.caughtUp()
}
