package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/migrations"
)

type migrateCommand struct {
	Up             migrateUp             `cmd:"" default:"1" help:"Apply what is missing; also what migrate alone does."`
	Status         migrateStatus         `cmd:"" help:"List this program's steps, applied or not."`
	GrantPublisher migrateGrantPublisher `cmd:"" help:"Let a PostgreSQL role publish events, and nothing else."`
}

type migrateUp struct{}

func (migrateUp) Help() string {
	return `Creates the schema and its tables, or changes them to what this program needs. Running it again, or in
several places at once, is harmless. SQLite needs no such step: every command does it there.

Example:
  ownbucket migrate up --database-url postgres://ownbucket@db.example/cms`
}

type migration struct {
	Version    int64   `json:"version"`
	Name       string  `json:"name"`
	Applied    *bool   `json:"applied,omitempty"`
	DurationMS float64 `json:"duration_ms,omitempty"`
}

func (migrateUp) Run(ctx context.Context, a *app) error {
	return a.withTables(ctx, func(db *database.DB) error {
		applied, err := migrations.Up(ctx, db)
		if err != nil {
			return err
		}
		if len(applied) == 0 && a.Output == "table" {
			fmt.Fprintln(a.stdout, "Nothing to do: the tables are up to date.")
			return nil
		}
		list := make([]migration, len(applied))
		for i, step := range applied {
			list[i] = migration{Version: step.Version, Name: step.Name,
				DurationMS: float64(step.Duration.Microseconds()) / 1000}
		}
		return printList(a, list, columns{"applied", "took"}, func(m migration) []string {
			return []string{m.Name, time.Duration(m.DurationMS * float64(time.Millisecond)).Round(time.Millisecond).String()}
		})
	})
}

type migrateStatus struct{}

func (migrateStatus) Help() string {
	return `Changes nothing, and needs no table to exist.

Example:
  ownbucket migrate status --output json`
}

func (migrateStatus) Run(ctx context.Context, a *app) error {
	return a.withTables(ctx, func(db *database.DB) error {
		steps, err := migrations.Status(ctx, db)
		if err != nil {
			return err
		}
		list := make([]migration, len(steps))
		for i, step := range steps {
			list[i] = migration{Version: step.Version, Name: step.Name, Applied: &step.Applied}
		}
		return printList(a, list, columns{"migration", "applied"}, func(m migration) []string {
			return []string{m.Name, yesNo(*m.Applied)}
		})
	})
}

type migrateGrantPublisher struct {
	Role string `arg:"" help:"An existing role: the one that the CMS connects as."`
}

func (migrateGrantPublisher) Help() string {
	return `Grants USAGE on the schema, INSERT on the outbox's columns event_id, type, service_id, environment_id, data and
metadata, and SELECT on event_id, which ON CONFLICT needs. The role can't read events or settings. Where an older
release let it write all columns, it can't any more.

Example:
  ownbucket migrate grant-publisher cms`
}

func (c migrateGrantPublisher) Run(ctx context.Context, a *app) error {
	return a.withTables(ctx, func(db *database.DB) error {
		if db.Dialect == database.PostgreSQL {
			if err := migrations.Check(ctx, db); err != nil {
				return err
			}
		}
		if err := migrations.GrantPublisher(ctx, db, c.Role); err != nil {
			return err
		}
		return printOne(a, map[string]string{"role": c.Role, "schema": db.Schema},
			field{"role", c.Role}, field{"may publish in schema", db.Schema})
	})
}

// withTables runs fn on the database whatever state its tables are in.
func (a *app) withTables(ctx context.Context, fn func(*database.DB) error) (err error) {
	db, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return fn(db)
}
