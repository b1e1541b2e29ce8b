package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/migrations"
)

type migrateCommands struct {
	Up             migrateUp      `cmd:"" help:"Apply what is missing. Safe to run again, and by several at once."`
	Status         migrateStatus  `cmd:"" help:"List the migrations and whether they are applied."`
	GrantPublisher grantPublisher `cmd:"" help:"Let a PostgreSQL role publish events, and nothing else."`
}

// open is without the check that other commands make.
func (e *environment) open(ctx context.Context) (*database.DB, error) {
	return database.Open(ctx, e.DatabaseURL, e.Schema)
}

type migrateUp struct{}

func (migrateUp) Run(ctx context.Context, e *environment) (err error) {
	db, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	applied, err := migrations.Up(ctx, db)
	if err != nil {
		return err
	}
	type step struct {
		Version int64  `json:"version"`
		Name    string `json:"name"`
	}
	steps := make([]step, len(applied))
	for i, a := range applied {
		steps[i] = step{a.Version, a.Name}
	}
	if e.Output == "table" && len(steps) == 0 {
		fmt.Fprintln(e.stdout, "up to date: nothing to apply")
		return nil
	}
	return e.print(steps, func(t table.Writer) {
		t.AppendHeader(table.Row{"APPLIED", "NAME"})
		for _, s := range steps {
			t.AppendRow(table.Row{s.Version, s.Name})
		}
	})
}

type migrateStatus struct{}

func (migrateStatus) Run(ctx context.Context, e *environment) (err error) {
	db, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	found, err := migrations.Status(ctx, db)
	if err != nil {
		return err
	}
	type step struct {
		Version int64  `json:"version"`
		Name    string `json:"name"`
		Applied bool   `json:"applied"`
	}
	steps := make([]step, len(found))
	for i, m := range found {
		steps[i] = step{m.Version, m.Name, m.Applied}
	}
	return e.print(steps, func(t table.Writer) {
		t.AppendHeader(table.Row{"VERSION", "NAME", "APPLIED"})
		for _, s := range steps {
			t.AppendRow(table.Row{s.Version, s.Name, s.Applied})
		}
	})
}

type grantPublisher struct {
	Role string `arg:"" help:"The PostgreSQL role of the CMS."`
}

func (c *grantPublisher) Run(ctx context.Context, e *environment) (err error) {
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := migrations.GrantPublisher(ctx, db, c.Role); err != nil {
		return err
	}
	return e.print(map[string]string{"role": c.Role}, func(t table.Writer) {
		t.AppendRow(table.Row{fmt.Sprintf("role %s may publish events", c.Role)})
	})
}
