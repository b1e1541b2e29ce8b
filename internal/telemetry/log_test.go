package telemetry_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/telemetry"
)

func TestJSONLogIsOneObjectALineWithTimesInUTC(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := telemetry.NewLogger(&out, "json", slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 12, 4, 5, 0, time.FixedZone("JST", 9*60*60))
	logger.Info("worker started", "since", at)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	written, _ := line["time"].(string)
	if !strings.HasSuffix(written, "Z") {
		t.Errorf("the line's own time %q is not in UTC", written)
	}
	delete(line, "time")
	want := map[string]any{"level": "INFO", "msg": "worker started", "since": "2026-01-02T03:04:05Z"}
	if diff := cmp.Diff(want, line); diff != "" {
		t.Error(diff)
	}
}

func TestLogLeavesOutWhatIsBelowItsLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := telemetry.NewLogger(&out, "text", slog.LevelWarn)
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("quiet")
	logger.Warn("loud")
	if text := out.String(); strings.Contains(text, "quiet") || !strings.Contains(text, "msg=loud") {
		t.Errorf("logged: %s", text)
	}
}

func TestUnknownLogFormatIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := telemetry.NewLogger(&bytes.Buffer{}, "xml", slog.LevelInfo); err == nil {
		t.Error("a log format that doesn't exist was taken")
	}
}
