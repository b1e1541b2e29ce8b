package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ownbucket/ownbucket/handlers"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// longestDelay between two attempts of an event.
const longestDelay = 12 * time.Hour

// spoolFullDoublings bounds the delay of an upload that found no room in the
// spool, about four minutes with a base of 1 s: when others make room, nothing
// tells it.
const spoolFullDoublings = 9

// attempt carries a handler's result from the innermost to the outermost.
type attempt struct {
	delivery *outbox.Delivery
	result   *handlers.Result
}

type attemptKey struct{}

func attemptFrom(ctx context.Context) (*attempt, bool) {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	return a, ok
}

// judge decides what an attempt's end means for its event, and acknowledges
// the message: trying again is the outbox's work, not the router's.
func (w *Worker) judge(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		ctx := msg.Context()
		d, ok := outbox.DeliveryFrom(ctx)
		if !ok {
			return nil, errors.New("the message didn't come from the outbox")
		}
		a := &attempt{delivery: d, result: &handlers.Result{}}
		msg.SetContext(context.WithValue(ctx, attemptKey{}, a))
		_, err := next(msg)
		if a.result == nil {
			a.result = &handlers.Result{}
		}
		verdict := w.verdict(ctx, a, err)
		w.observe.judged(ctx, d, verdict)
		if a.result.VersionFell && verdict.Kind == outbox.Complete {
			w.observe.versionFell(ctx, d)
		}
		d.Settle(verdict)
		return nil, nil
	}
}

func (w *Worker) verdict(ctx context.Context, a *attempt, err error) outbox.Verdict {
	var wait *outbox.Wait
	switch {
	case errors.As(err, &wait):
		return outbox.Verdict{Kind: outbox.Defer, Delay: wait.For, Behind: wait.Behind, WaitsFor: wait.On, WaitsForCopy: wait.OnCopy}
	case err != nil && ctx.Err() != nil:
		return interrupted(failure.New(failure.Interrupted, failure.Canceled,
			"the attempt was interrupted: %w", errors.Join(context.Cause(ctx), err)))
	case err != nil:
		return w.failed(ctx, a, failure.Of(err))
	}
	v := outbox.Verdict{Kind: outbox.Complete, Outcome: a.result.Outcome, Effects: a.result.Effects}
	if v.Outcome != outbox.Done {
		v.Effects.Possible = a.leftovers()
	}
	return v
}

// interrupted gives an event back. Where a write was cancelled, nobody tries
// again before that can have no effect any more.
func interrupted(f *failure.Error) outbox.Verdict {
	v := outbox.Verdict{Kind: outbox.Yield, Failure: f}
	if errors.Is(f, bucket.ErrInDoubt) {
		v.Delay = bucket.LateWrites
	}
	return v
}

// failed sorts a failure by its class.
func (w *Worker) failed(ctx context.Context, a *attempt, f *failure.Error) outbox.Verdict {
	e := a.delivery.Event
	switch f.Class {
	case failure.Interrupted:
		v := interrupted(f)
		if f.Code == failure.SpoolFull {
			v.Delay = w.backoff(min(e.RecordedCount+1, spoolFullDoublings))
		}
		return v
	case failure.Permanent:
		return a.dead(f)
	case failure.Integration:
		alone, err := w.deniedAlone(ctx, e)
		switch {
		case err != nil:
			return w.transient(a, failure.Of(err))
		case !alone:
			return outbox.Verdict{Kind: outbox.Yield, Failure: f, Denied: true}
		case e.DeniedCount+1 >= integration.DeniedAttempts:
			return a.dead(failure.New(failure.Permanent, failure.Denied,
				"the customer's account denies this event alone, its other events pass: %w", f).WithRequestID(f.RequestID))
		}
		return outbox.Verdict{Kind: outbox.Retry, Failure: f, Denied: true, Delay: w.backoff(integration.DeniedBackoff + e.DeniedCount)}
	default:
		return w.transient(a, f)
	}
}

func (w *Worker) transient(a *attempt, f *failure.Error) outbox.Verdict {
	failures := a.delivery.Event.FailureCount + 1
	if failures >= w.config.RetryAttempts {
		return a.dead(f)
	}
	return outbox.Verdict{Kind: outbox.Retry, Failure: f, Delay: w.backoff(failures)}
}

// deniedAlone tells whether a probe of the integration, as it is now, has passed
// since this event was denied: then it is this event that is denied, not the
// integration.
func (w *Worker) deniedAlone(ctx context.Context, e *outbox.Event) (bool, error) {
	if e.DeniedAt == nil {
		return false, nil
	}
	found, ok, err := w.settings.Of(ctx, e.LaneID)
	return ok && found.GrantedSince(*e.DeniedAt), err
}

// unsettled judges an event whose end could not be written.
func (w *Worker) unsettled(e *outbox.Event, err error) outbox.Verdict {
	f := failure.New(failure.Transient, failure.Internal, "the event's end could not be recorded: %w", err)
	return w.transient(&attempt{delivery: &outbox.Delivery{Event: e}, result: &handlers.Result{}}, f)
}

func (a *attempt) dead(f *failure.Error) outbox.Verdict {
	return outbox.Verdict{Kind: outbox.Die, Failure: f, Effects: ledger.Effects{Possible: a.leftovers()}}
}

// leftovers is what the event may have written in this or an earlier attempt.
func (a *attempt) leftovers() []ledger.PossibleWrite {
	if a.result.Target == nil || !a.result.Wrote && !a.delivery.MayHaveRun {
		return nil
	}
	return []ledger.PossibleWrite{*a.result.Target}
}

func invalid(err error) error {
	return failure.New(failure.Permanent, failure.InvalidEvent, "%w", err)
}

// lapse counts a lapsed lease against an event that ran alone when it lapsed.
func lapse(e *outbox.Event) error {
	if e.LapseCount <= outbox.AloneAfter {
		return nil
	}
	return failure.New(failure.Transient, failure.Lapsed,
		"the worker's lease lapsed %d times in a row while this event ran, the last time alone: it may bring workers down",
		e.LapseCount)
}

// backoff is exponential with full jitter: the n-th failure is followed by a
// random delay of up to base × 2^(n-1), at most 12 h. With a base of 1 s, 25
// attempts spread over about 2.5 days.
func backoff(base time.Duration) func(failures int) time.Duration {
	return func(failures int) time.Duration {
		most := longestDelay
		if doubled := failures - 1; base <= most>>doubled {
			most = base << doubled
		}
		return rand.N(most + 1)
	}
}
