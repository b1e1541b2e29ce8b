package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// deliver hands one event to its handler and waits for what becomes of it.
func (s *Subscriber) deliver(l *lane, e *entry, d *Delivery) {
	if err := s.handle(l, d); err != nil {
		s.config.Logger.Error("event was not handled", "event_id", e.event.EventID, "error", err)
	}
	if d.verdict == nil {
		cause := context.Cause(l.ctx)
		if cause == nil {
			cause = errors.New("its handler came to no verdict")
		}
		d.verdict = &Verdict{Kind: Yield, Failure: failure.New(failure.Interrupted, failure.Canceled,
			"the attempt was interrupted: %w", cause)}
	}
	s.returned(l, e, d.verdict)
	s.results <- &result{lane: l, entry: e, settled: Settlement{
		Event: e.event, Token: l.Token, Worker: s.config.Worker,
		Started: d.Started, Duration: time.Since(d.Started), Verdict: *d.verdict,
	}}
}

// returned frees the slot of a handler, while the end of its event is still to
// be written: only what must come after that event waits for it.
func (s *Subscriber) returned(l *lane, e *entry, v *Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.settling = true
	l.active--
	s.free++
	s.alone = false
	if l.active >= startingPace {
		s.giveSlotBack()
	}
	if e.slow {
		s.slow--
		s.enqueueSlow()
	}
	switch {
	case v.Failure != nil && v.Failure.Slows():
		l.pace.slowed()
	case v.Kind == Complete:
		l.pace.succeeded()
	case v.blocks():
		l.status.Held = true
	}
	if s.lanes[l.LaneID] == l {
		s.enqueue(l)
	}
	s.dispatch()
}

func (s *Subscriber) handle(l *lane, d *Delivery) error {
	if l.LapseCount > 0 {
		// Events of this lane may bring workers down: know which had begun.
		held := []Holding{{LaneID: l.LaneID, Token: l.Token}}
		if err := s.store.MarkRunning(l.ctx, held, []*Event{d.Event}); err != nil {
			return err
		}
	}
	select {
	case <-l.ctx.Done(): // the lane was lost between its start and here
		return nil
	default:
	}
	msg := message.NewMessageWithContext(WithDelivery(l.ctx, d), d.Event.EventID, d.Event.Data)
	metadata, err := readMetadata(d.Event.Metadata)
	if err != nil {
		s.config.Logger.Warn("metadata of an event can't be read", "event_id", d.Event.EventID, "error", err)
	}
	msg.Metadata = metadata
	select {
	case s.topics[d.Event.Type] <- msg:
	case <-l.ctx.Done():
		return nil
	}
	// The handler honours the context; its answer is waited for all the same,
	// so that nothing of it goes on unseen.
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	}
	return nil
}
