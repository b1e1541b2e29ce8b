// Package telemetry sets up what operators watch a process by.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLogger writes structured lines from that level up, as "text" for people
// or as "json" for machines, one object a line.
func NewLogger(w io.Writer, format string, level slog.Level) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: inUTC}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log format %q: use text or json", format)
	}
}

// inUTC makes times comparable with those in the database and at AWS.
func inUTC(_ []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindTime {
		attr.Value = slog.TimeValue(attr.Value.Time().UTC())
	}
	return attr
}
