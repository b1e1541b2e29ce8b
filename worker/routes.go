package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/handlers"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// route is how one type of event is handled.
type route struct {
	eventType string
	// timeout is of one attempt. Large files take long, and a whole directory
	// longer; what ends sooner than it should is retried.
	timeout time.Duration
	handle  func(context.Context, *outbox.Delivery, events.Event) (*handlers.Result, error)
}

func (w *Worker) routes() []route {
	h := w.handlers
	return []route{
		{events.MediaUploadedType, 6 * time.Hour, handle(h.Upload)},
		{events.MediaRenamedType, time.Hour, handle(h.Rename)},
		{events.MediaDeletedType, 10 * time.Minute, handle(h.Delete)},
		{events.EnvironmentCreatedType, 10 * time.Minute, handle(
			func(ctx context.Context, d *outbox.Delivery, _ events.EnvironmentCreated) (*handlers.Result, error) {
				return h.CreateEnvironment(ctx, d)
			})},
		{events.EnvironmentDeletedType, 48 * time.Hour, handle(
			func(ctx context.Context, d *outbox.Delivery, _ events.EnvironmentDeleted) (*handlers.Result, error) {
				return h.DeleteEnvironment(ctx, d)
			})},
	}
}

// handle gives a handler its own type of event.
func handle[E events.Event](h func(context.Context, *outbox.Delivery, E) (*handlers.Result, error)) func(
	context.Context, *outbox.Delivery, events.Event) (*handlers.Result, error) {
	return func(ctx context.Context, d *outbox.Delivery, e events.Event) (*handlers.Result, error) {
		typed, ok := e.(E)
		if !ok {
			return nil, fmt.Errorf("event of type %T was routed to the handler of %T", e, typed)
		}
		return h(ctx, d, typed)
	}
}

// register puts the routes and the middleware around them into the router,
// the outermost first.
func (w *Worker) register(router *message.Router) {
	router.AddMiddleware(w.judge, w.observe.trace, contain)
	for _, r := range w.routes() {
		router.AddConsumerHandler(r.eventType, r.eventType, w.subscriber, w.consume(r))
	}
}

// contain lets a panic fail its event alone. Watermill's own Recoverer puts the
// whole stack into the error, which is logged and kept with each attempt.
func contain(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		err = failure.Contain(func() error {
			produced, err = next(msg)
			return err
		})
		return produced, err
	}
}

// consume runs one event: what must come before it, then its handler.
func (w *Worker) consume(r route) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		ctx, cancel := context.WithTimeout(msg.Context(), r.timeout)
		defer cancel()
		a, ok := attemptFrom(ctx)
		if !ok {
			return errors.New("the message came without its attempt")
		}
		d := a.delivery
		if lapsed := lapse(d.Event); lapsed != nil {
			return lapsed
		}
		e, err := d.Event.Parse()
		if err != nil {
			return invalid(err)
		}
		if d.Event.Sequence < d.DeletedSequence {
			a.result = &handlers.Result{Outcome: outbox.Superseded}
			return nil
		}
		ctx = bucket.WithGuard(ctx, d.Guard)
		if e.Media() != "" && d.Event.Copying {
			if err := w.environments.CopyFirst(ctx, d, e.FileNames()); err != nil {
				return err
			}
		}
		a.result, err = r.handle(ctx, d, e)
		return err
	}
}
