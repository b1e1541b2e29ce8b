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
