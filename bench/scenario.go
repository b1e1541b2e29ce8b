package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/pgtest"
	"github.com/ownbucket/ownbucket/migrations"
)

// scenario measures one thing for every subject that a user could pick.
type scenario struct {
	name string // "throughput/no-op/10000"
	run  func(ctx context.Context, e *environment) ([]row, error)
}

// row is one figure.
type row struct {
	Scenario, Subject string
	Events            int
	Figure            float64
	Unit              string // "events/s", "ms", "MiB", "bytes/event", "ratio"
	Peer              string // the subject that it is compared with; empty if none
	Target            string // words, e.g. "≥ 2 × River"
	Met               *bool  // nil: no target
	Limit             string // what limits the figure, short
}

// key is what a row is compared by: subjects of one scenario in one unit.
type key struct{ scenario, subject, unit string }

// ratio is the figure's to its peer's; 0 if there is none.
func (r row) ratio(figures map[key]float64) float64 {
	peer := figures[key{r.Scenario, r.Peer, r.Unit}]
	if r.Peer == "" || peer == 0 {
		return 0
	}
	return r.Figure / peer
}

// scale is how much time the figures are given.
type scale string

const (
	small scale = "small"
	full  scale = "full"
)

// pick is the size of something at either scale.
func pick[T any](s scale, ifSmall, ifFull T) T {
	if s == small {
		return ifSmall
	}
	return ifFull
}

// environment is what scenarios share.
type environment struct {
	scale  scale
	logger *slog.Logger
	server *pgtest.Server

	made     int            // databases, so far
	cleanups []func() error // of the scenario that runs
	figures  map[key]float64
}

// figure is what an earlier scenario of this run measured.
func (e *environment) figure(scenario, subject, unit string) (float64, bool) {
	figure, ok := e.figures[key{scenario, subject, unit}]
	return figure, ok
}

// database makes a fresh, migrated database. It is closed and dropped after
// the scenario.
func (e *environment) database(ctx context.Context, name string) (*database.DB, string, error) {
	url, err := e.create(name)
	if err != nil {
		return nil, "", err
	}
	db, err := database.Open(ctx, url, database.DefaultSchema)
	if err != nil {
		return nil, "", err
	}
	e.cleanUp(db.Close)
	if _, err := migrations.Up(ctx, db); err != nil {
		return nil, "", fmt.Errorf("migrate: %w", err)
	}
	return db, url, nil
}

// emptyDatabase makes a database without tables, dropped after the scenario.
func (e *environment) emptyDatabase(context.Context) (url string, err error) {
	return e.create("empty")
}

func (e *environment) create(name string) (url string, err error) {
	e.made++
	name = fmt.Sprintf("%s_%d", name, e.made)
	url, err = e.server.Create(name, "template1")
	if err != nil {
		return "", err
	}
	e.cleanUp(func() error { return e.server.Drop(name) })
	return url, nil
}

// cleanUp has something undone after the scenario, the last first.
func (e *environment) cleanUp(undo func() error) { e.cleanups = append(e.cleanups, undo) }

func (e *environment) cleanUpAll() error {
	var all error
	for i := len(e.cleanups) - 1; i >= 0; i-- {
		all = errors.Join(all, e.cleanups[i]())
	}
	e.cleanups = nil
	return all
}
