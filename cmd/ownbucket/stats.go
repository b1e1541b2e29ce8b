package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
)

type statsCommand struct{}

func (statsCommand) Help() string {
	return `Also tells how long the oldest available event has waited: the lag.

Example:
  ownbucket stats --output json`
}

func (statsCommand) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		stats, err := openOutbox(db).Stats(ctx)
		if err != nil {
			return err
		}
		var fields []field
		for state := range strings.SplitSeq(states, ",") {
			fields = append(fields, field{state, strconv.FormatInt(stats.Events[state], 10)})
		}
		oldest := time.Duration(stats.OldestAvailableSeconds * float64(time.Second)).Round(time.Millisecond)
		return printOne(a, stats, append(fields, field{"oldest available waits", oldest.String()})...)
	})
}
