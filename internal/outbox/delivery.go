package outbox

import (
	"context"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

// AloneAfter is how many lapses in a row make an event run with nothing else
// in its worker, so that it is known which one brings the process down.
const AloneAfter = 10

// Delivery is an event in the hands of a handler. It travels in the context
// of its Watermill message.
type Delivery struct {
	Event *Event
	// MayHaveRun tells that an earlier attempt, perhaps of a worker that died,
	// may have reached the bucket.
	MayHaveRun bool
	// DeletedSequence is that of the environment's last completed deletion.
	DeletedSequence int64
	// Token is that of the lease under which the event runs.
	Token   int64
	Started time.Time

	// Alive tells whether the lease is good for another call; nil where nothing
	// ends it.
	Alive func() bool
	// Slow tells the worker that the event waits for its source by now, or no
	// longer does: meanwhile it counts as slow. It returns false where slow events
	// have their share of the slots already, and this one has to end. nil where
	// nobody counts.
	Slow func(slow bool) bool

	verdict *Verdict
}

// Verdict is what an attempt's end means for its event.
type Verdict struct {
	Kind Kind
	// Outcome goes with Complete, Delay with Retry and Defer.
	Outcome string
	Delay   time.Duration
	// Behind are resources that order the event from now on, besides its own.
	Behind []string
	// WaitsFor and WaitsForCopy go with Defer: the sequence of the event, or that of
	// the copy, for which the event waits; 0 where it only waits for time to pass.
	WaitsFor, WaitsForCopy int64
	// Refused goes with Die and Retry: the event was not handled, and no attempt counts.
	Refused bool
	// Failure is nil where nothing went wrong. Denied tells that the customer's
	// account refused.
	Failure *failure.Error
	Denied  bool
	Effects ledger.Effects
}

// Settle says how the attempt ended; the acknowledgement of the message then
// makes it so. Without it, an acknowledged message is an interrupted attempt.
func (d *Delivery) Settle(v Verdict) { d.verdict = &v }

// Verdict is what the handler settled on; nil where it came to nothing.
func (d *Delivery) Verdict() *Verdict { return d.verdict }

// Guard fails once the lease may end before a call would: nothing may be sent
// to the bucket any more.
func (d *Delivery) Guard() error {
	if d.Alive == nil || d.Alive() {
		return nil
	}
	return failure.New(failure.Interrupted, failure.Canceled,
		"the lease of service %s, environment %q can't be relied on any more: another worker takes over",
		d.Event.ServiceID, d.Event.EnvironmentID)
}

// Wait is the error of a handler whose event can't run yet, without any fault
// of its own: no attempt counts.
type Wait struct {
	// For is how long, unless Behind names what the event then comes after, and
	// didn't before: resources, as they stand in the outbox.
	For    time.Duration
	Behind []string
	// On is the sequence of the event that is waited for, OnCopy that of the copy,
	// where there is one: while that can't go on, the worker is idle.
	On, OnCopy int64
	Reason     string
}

func (w *Wait) Error() string { return w.Reason }

type deliveryKey struct{}

// WithDelivery puts the delivery into the context of its handler.
func WithDelivery(ctx context.Context, d *Delivery) context.Context {
	return context.WithValue(ctx, deliveryKey{}, d)
}

// DeliveryFrom returns the delivery of a message's context.
func DeliveryFrom(ctx context.Context) (*Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	return d, ok
}
