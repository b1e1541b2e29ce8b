package worker

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

const scope = "github.com/ownbucket/ownbucket/worker"

// observer makes attempts visible: spans, counts and log lines. It uses
// OpenTelemetry's global providers, which do nothing until somebody sets them.
type observer struct {
	logger   *slog.Logger
	meter    metric.Meter
	tracer   trace.Tracer
	attempts metric.Int64Counter
	duration metric.Float64Histogram
	fallen   metric.Int64Counter
	spooled  metric.Int64ObservableGauge
}

func newObserver(logger *slog.Logger) (*observer, error) {
	meter := otel.Meter(scope)
	attempts, err := meter.Int64Counter("ownbucket.attempts",
		metric.WithDescription("Attempts of events, by type, end and error code."))
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	duration, err := meter.Float64Histogram("ownbucket.attempt.duration", metric.WithUnit("s"),
		metric.WithDescription("How long attempts take."))
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	fallen, err := meter.Int64Counter("ownbucket.versions.fallen",
		metric.WithDescription("Events whose version is below that of an earlier event of their media: the CMS's clocks disagree."))
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	spooled, err := meter.Int64ObservableGauge("ownbucket.spool.usage", metric.WithUnit("By"),
		metric.WithDescription("Bytes of uploads of unknown length on the worker's disk."))
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	return &observer{logger: logger, meter: meter, tracer: otel.Tracer(scope), attempts: attempts, duration: duration,
		fallen: fallen, spooled: spooled}, nil
}

// watchSpool reports the spool's bytes until it is stopped.
func (o *observer) watchSpool(bytes func() int64) (stop func() error, err error) {
	registered, err := o.meter.RegisterCallback(func(_ context.Context, report metric.Observer) error {
		report.ObserveInt64(o.spooled, bytes())
		return nil
	}, o.spooled)
	if err != nil {
		return nil, fmt.Errorf("watch the spool: %w", err)
	}
	return registered.Unregister, nil
}

// versionFell counts and logs an event whose version is below that of an earlier
// event of its media.
func (o *observer) versionFell(ctx context.Context, d *outbox.Delivery) {
	o.fallen.Add(ctx, 1)
	o.logger.WarnContext(ctx, "the version of a media has fallen: the clocks of the CMS's nodes disagree; "+
		"events run in publish order all the same", "event_id", d.Event.EventID, "sequence", d.Event.Sequence,
		"service_id", d.Event.ServiceID, "environment_id", d.Event.EnvironmentID, "media_id", d.Event.Media())
}

// trace continues the publisher's trace, which travels in the event.
func (o *observer) trace(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		ctx := propagation.TraceContext{}.Extract(msg.Context(), propagation.MapCarrier(msg.Metadata))
		d, _ := outbox.DeliveryFrom(ctx)
		ctx, span := o.tracer.Start(ctx, "handle "+d.Event.Type, trace.WithSpanKind(trace.SpanKindConsumer),
			trace.WithAttributes(
				attribute.String("ownbucket.event_id", d.Event.EventID),
				attribute.String("ownbucket.service_id", d.Event.ServiceID),
				attribute.String("ownbucket.environment_id", d.Event.EnvironmentID),
			))
		defer span.End()
		msg.SetContext(ctx)
		produced, err := next(msg)
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		return produced, err
	}
}

// judged counts an attempt and logs how it ended, once.
func (o *observer) judged(ctx context.Context, d *outbox.Delivery, v outbox.Verdict) {
	took := time.Since(d.Started)
	o.count(ctx, d, v, took)
	level := slog.LevelDebug
	switch {
	case v.Kind == outbox.Die:
		level = slog.LevelError
	case v.Failure != nil:
		level = slog.LevelWarn
	}
	if !o.logger.Enabled(ctx, level) {
		return
	}
	fields := []any{
		"event_id", d.Event.EventID, "type", d.Event.Type, "sequence", d.Event.Sequence,
		"service_id", d.Event.ServiceID, "environment_id", d.Event.EnvironmentID, "media_id", d.Event.Media(),
		"duration", took,
	}
	if v.Outcome != "" {
		fields = append(fields, "outcome", v.Outcome)
	}
	if v.Failure != nil {
		fields = append(fields, "error_class", v.Failure.Class, "error_code", v.Failure.Code, "error", v.Failure)
	}
	o.logger.Log(ctx, level, "event "+endings[v.Kind], fields...)
}

func (o *observer) count(ctx context.Context, d *outbox.Delivery, v outbox.Verdict, took time.Duration) {
	if !o.attempts.Enabled(ctx) && !o.duration.Enabled(ctx) {
		return
	}
	labels := []attribute.KeyValue{
		attribute.String("type", d.Event.Type),
		attribute.String("end", endings[v.Kind]),
	}
	o.duration.Record(ctx, took.Seconds(), metric.WithAttributes(labels...))
	if v.Outcome != "" {
		labels = append(labels, attribute.String("outcome", v.Outcome))
	}
	if v.Failure != nil {
		labels = append(labels, attribute.String("error_class", string(v.Failure.Class)),
			attribute.String("error_code", v.Failure.Code))
	}
	o.attempts.Add(ctx, 1, metric.WithAttributes(labels...))
}

var endings = map[outbox.Kind]string{
	outbox.Complete: "completed",
	outbox.Die:      "died",
	outbox.Retry:    "will be retried",
	outbox.Defer:    "waits",
	outbox.Yield:    "was given back",
}
