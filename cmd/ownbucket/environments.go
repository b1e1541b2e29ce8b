package main

import (
	"context"
	"errors"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/database"
	envs "github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

type environmentCommands struct {
	List        environmentsList        `cmd:"" help:"List environments that were made from others, and how far their copies are."`
	Show        environmentsShow        `cmd:"" help:"Show one environment, with the media that could not be copied."`
	RetryFailed environmentsRetryFailed `cmd:"" help:"Copy an environment's failed media again."`
}

// recorder is what the outbox records through when an operator acts. It calls
// no bucket.
func recorder(db *database.DB) outbox.Recorder { return copies(db) }

func copies(db *database.DB) *envs.Store {
	return envs.New(db, ledger.New(db), integration.New(db), nil, envs.Options{})
}

func (e *environment) copies(ctx context.Context, use func(*envs.Store) error) (err error) {
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return use(copies(db))
}

type environmentsList struct{ listing }

func (c *environmentsList) Run(ctx context.Context, e *environment) error {
	return e.copies(ctx, func(store *envs.Store) error {
		listed, err := store.List(ctx, c.Limit)
		if err != nil {
			return err
		}
		return e.print(listed, func(t table.Writer) {
			t.AppendHeader(table.Row{"SERVICE", "ENV", "MADE FROM", "DIRECTORY", "STATE", "TOTAL", "DONE", "FAILED"})
			for _, l := range listed {
				t.AppendRow(table.Row{l.ServiceID, l.EnvironmentID, l.SourceEnvironmentID, l.Directory, l.State,
					l.Total, l.Done, l.Failed})
			}
		})
	})
}

// madeEnvironment names an environment other than production.
type madeEnvironment struct {
	Service     string `help:"Service ID." required:""`
	Environment string `help:"Environment ID." required:""`
}

type environmentsShow struct{ madeEnvironment }

func (c *environmentsShow) Run(ctx context.Context, e *environment) error {
	return e.copies(ctx, func(store *envs.Store) error {
		shown, err := store.Show(ctx, c.Service, c.Environment)
		if err != nil {
			return err
		}
		return e.print(shown, func(t table.Writer) {
			fields(t, "service", shown.ServiceID, "environment", shown.EnvironmentID, "made from", shown.SourceEnvironmentID,
				"directory", shown.Directory, "state", shown.State, "total", shown.Total, "done", shown.Done,
				"failed", shown.Failed)
			for _, f := range shown.Failures {
				t.AppendRow(table.Row{"media " + f.MediaID, f.ErrorCode + ": " + f.Error})
			}
		})
	})
}

type environmentsRetryFailed struct {
	madeEnvironment
	Reason string `help:"Why, for the audit." required:""`
}

func (c *environmentsRetryFailed) Run(ctx context.Context, e *environment) error {
	return e.copies(ctx, func(store *envs.Store) error {
		changed, err := store.RetryFailed(ctx, c.Service, c.Environment, e.actor(), c.Reason)
		if err != nil {
			return err
		}
		counts := outbox.Counts{Matched: changed, Changed: changed}
		return e.print(counts, func(t table.Writer) { fields(t, "changed", changed) })
	})
}
