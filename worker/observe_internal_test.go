package worker

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

type counter struct {
	noop.Int64Counter
	n int64
}

func (c *counter) Add(_ context.Context, n int64, _ ...metric.AddOption) { c.n += n }

func TestAVersionThatFellIsCountedAndWarnedOf(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	fallen := &counter{}
	o := &observer{logger: slog.New(slog.NewTextHandler(&log, nil)), fallen: fallen}
	media := "m1"
	o.versionFell(t.Context(), &outbox.Delivery{Event: &outbox.Event{EventID: "an event", ServiceID: "S1", MediaID: &media}})
	if fallen.n != 1 {
		t.Errorf("%d were counted, want 1", fallen.n)
	}
	for _, words := range []string{"level=WARN", "version of a media has fallen", `event_id="an event"`, "media_id=m1"} {
		if !strings.Contains(log.String(), words) {
			t.Errorf("%q is missing in the log: %s", words, log.String())
		}
	}
}

// meter keeps the callback that is registered with it.
type meter struct {
	noop.Meter
	callback metric.Callback
}

func (m *meter) RegisterCallback(f metric.Callback, _ ...metric.Observable) (metric.Registration, error) {
	m.callback = f
	return registration{meter: m}, nil
}

type registration struct {
	noop.Registration
	meter *meter
}

func (r registration) Unregister() error {
	r.meter.callback = nil
	return nil
}

type report struct {
	noop.Observer
	value int64
}

func (r *report) ObserveInt64(_ metric.Int64Observable, value int64, _ ...metric.ObserveOption) {
	r.value = value
}

func TestTheSpoolIsReportedUntilTheWorkerStops(t *testing.T) {
	t.Parallel()
	m := &meter{}
	stop, err := (&observer{meter: m}).watchSpool(func() int64 { return 42 })
	if err != nil {
		t.Fatal(err)
	}
	var seen report
	if err := m.callback(t.Context(), &seen); err != nil || seen.value != 42 {
		t.Errorf("%d bytes were reported, %v", seen.value, err)
	}
	if err := stop(); err != nil || m.callback != nil {
		t.Errorf("it is reported on, %v", err)
	}
}
