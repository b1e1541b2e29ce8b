package subscriber

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// deliver hands one event to its handler and waits for what becomes of it.
func (s *Subscriber) deliver(l *lane, e *entry, d *outbox.Delivery) {
	if err := s.handle(l, d); err != nil {
		s.config.Logger.Error("event was not handled", "event_id", e.event.EventID, "error", err)
	}
	verdict := d.Verdict()
	if verdict == nil {
		cause := context.Cause(l.ctx)
		if cause == nil {
			cause = errors.New("its handler came to no verdict")
		}
		verdict = &outbox.Verdict{Kind: outbox.Yield, Failure: failure.New(failure.Interrupted, failure.Canceled,
			"the attempt was interrupted: %w", cause)}
	}
	s.returned(l, e, verdict)
	s.results <- &result{lane: l, entry: e, settled: outbox.Settlement{
		Event: e.event, Token: l.Token, Worker: s.config.Worker,
		Started: d.Started, Duration: time.Since(d.Started), Verdict: *verdict,
	}}
}

func (s *Subscriber) handle(l *lane, d *outbox.Delivery) error {
	if l.LapseCount > 0 {
		// Events of this lane may bring workers down: know which had begun.
		held := []outbox.Holding{{LaneID: l.LaneID, Token: l.Token}}
		if err := s.store.MarkRunning(l.ctx, held, []*outbox.Event{d.Event}); err != nil {
			return err
		}
	}
	select {
	case <-l.ctx.Done(): // the lane was lost between its start and here
		return nil
	default:
	}
	topic, known := s.topics[d.Event.Type]
	if !known {
		verdict := refused(d.Event)
		s.config.Logger.Warn("an event has no handler", "event_id", d.Event.EventID, "service_id", d.Event.ServiceID,
			"environment_id", d.Event.EnvironmentID, "waits", verdict.Delay, "error", verdict.Failure)
		d.Settle(verdict)
		return nil
	}
	payload, err := d.Event.Payload()
	if err != nil {
		return err
	}
	msg := message.NewMessageWithContext(outbox.WithDelivery(l.ctx, d), d.Event.EventID, payload)
	metadata, err := readMetadata(d.Event.Metadata)
	if err != nil {
		s.config.Logger.Warn("metadata of an event can't be read", "event_id", d.Event.EventID, "error", err)
	}
	msg.Metadata = metadata
	select {
	case topic <- msg:
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

// An event of an unknown type is looked at again after unknownTypeWait, and after twice
// as long each time, up to longestUnknownTypeWait.
const (
	unknownTypeWait        = time.Minute
	longestUnknownTypeWait = time.Hour
)

// refused is what becomes of an event of a type that has no handler: it waits for a
// worker that knows the type, unless no type can have that name.
func refused(e *outbox.Event) outbox.Verdict {
	_, err := e.Parse()
	var unknown *events.UnknownTypeError
	if errors.As(err, &unknown) {
		delay := unknownTypeWait
		for n := 0; n < e.WaitCount && delay < longestUnknownTypeWait; n++ {
			delay *= 2
		}
		return outbox.Verdict{Kind: outbox.Retry, Refused: true, Delay: min(delay, longestUnknownTypeWait),
			Failure: failure.New(failure.Transient, failure.UnknownType, "%w", err)}
	}
	return outbox.Verdict{Kind: outbox.Die, Refused: true, Failure: failure.New(failure.Permanent, failure.InvalidEvent, "%w", err)}
}

func readMetadata(data []byte) (message.Metadata, error) {
	metadata := message.Metadata{}
	if len(data) == 0 || string(data) == "{}" {
		return metadata, nil
	}
	if err := json.Unmarshal(data, &metadata); err != nil {
		return message.Metadata{}, fmt.Errorf("not an object of strings: %w", err)
	}
	return metadata, nil
}
