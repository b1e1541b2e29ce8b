// Command bench measures Ownbucket beside what a user would pick instead, on
// a PostgreSQL server of its own, and prints one table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// settings of the server are the same for every subject. Checkpoints come by
// time alone, not where a subject's run happens to fill the log.
var settings = []string{
	"shared_buffers=512MB", "fsync=on", "synchronous_commit=on", "full_page_writes=on", "max_wal_size=8GB",
}

func main() {
	debug.SetGCPercent(400) // as the worker does; for every subject
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 3 && os.Args[1] == consumeCommand {
		exit(consumeAlone(ctx, os.Args[2]))
	}
	if len(os.Args) == 2 && os.Args[1] == standInCommand {
		exit(beStandIn())
	}
	only := flag.String("only", "", "run only scenarios whose names match this regular expression")
	size := flag.String("scale", string(full), "small, for a look within two minutes, or full")
	format := flag.String("format", "table", "table or markdown")
	flag.Parse()
	exit(run(ctx, *only, scale(*size), *format))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, only string, size scale, format string) (err error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if size != small && size != full {
		return fmt.Errorf("-scale %s: use %s or %s", size, small, full)
	}
	show, ok := formats[format]
	if !ok {
		return fmt.Errorf("-format %s: use table or markdown", format)
	}
	server, err := pgtest.Start(settings...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	e := &environment{
		scale: size, server: server, figures: make(map[key]float64),
		logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}

	scenarios := slices.Concat(throughputScenarios(), latencyScenarios(), publishingScenarios(), scalingScenarios(),
		isolationScenarios(), uploadScenarios(), memoryScenarios(), backlogScenarios())
	var rows []row
	var failed error
	for _, s := range scenarios {
		if !pattern.MatchString(s.name) || ctx.Err() != nil {
			continue
		}
		e.logger.Info("scenario begins", "scenario", s.name)
		started := time.Now()
		measured, err := s.run(ctx, e)
		if err = errors.Join(err, e.cleanUpAll()); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
			e.logger.Error("scenario failed", "scenario", s.name, "error", err)
		}
		for _, r := range measured {
			e.figures[key{r.Scenario, r.Subject, r.Unit}] = r.Figure
			e.logger.Info("measured", "scenario", r.Scenario, "subject", r.Subject, "figure", r.Figure, "unit", r.Unit)
		}
		rows = append(rows, measured...)
		e.logger.Info("scenario ended", "scenario", s.name, "took", time.Since(started).Round(time.Millisecond))
	}
	show(os.Stdout, rows, e.figures)
	return failed
}
