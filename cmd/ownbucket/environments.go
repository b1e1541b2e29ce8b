package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/environment"
)

type environmentsCommand struct {
	List        environmentsList        `cmd:"" help:"List copies of environments with their progress."`
	Show        environmentsShow        `cmd:"" help:"One environment's copy, and what failed in it."`
	RetryFailed environmentsRetryFailed `cmd:"" help:"Copy again what failed."`
}

// environmentFlags name one environment, or production.
type environmentFlags struct {
	Service     string `required:"" placeholder:"ID" help:"The service's ID."`
	Environment string `placeholder:"ID" help:"The environment's ID; production without it."`
}

type environmentsList struct{ limited }

func (environmentsList) Help() string {
	return `States: running (media are still owed), complete, incomplete (some failed; see show), deleting.

Example:
  ownbucket environments list --output json`
}

func (c environmentsList) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		listed, err := environments(db).List(ctx, c.Limit)
		if err != nil {
			return err
		}
		a.noteCut(len(listed), c.limited)
		header := columns{"service", "environment", "from", "directory", "state", "total", "done", "failed"}
		return printList(a, listed, header, func(e environment.Listed) []string {
			return []string{e.ServiceID, e.EnvironmentID, place(e.SourceEnvironmentID), e.Directory, e.State,
				strconv.FormatInt(e.Total, 10), strconv.FormatInt(e.Done, 10), strconv.FormatInt(e.Failed, 10)}
		})
	})
}

type environmentsShow struct{ environmentFlags }

func (environmentsShow) Help() string {
	return `Example:
  ownbucket environments show --service S1 --environment staging`
}

func (c environmentsShow) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		e, err := environments(db).Show(ctx, c.Service, c.Environment)
		if err != nil {
			return err
		}
		if err := printOne(a, e, field{"service", e.ServiceID}, field{"environment", e.EnvironmentID},
			field{"copied from", place(e.SourceEnvironmentID)}, field{"directory", e.Directory}, field{"state", e.State},
			field{"done", fmt.Sprintf("%d of %d", e.Done, e.Total)}, field{"failed", strconv.FormatInt(e.Failed, 10)},
		); err != nil || a.Output == "json" || len(e.Failures) == 0 {
			return err
		}
		fmt.Fprintln(a.stdout)
		return printList(a, e.Failures, columns{"media", "error code", "error"}, func(f environment.Failure) []string {
			return []string{f.MediaID, f.ErrorCode, f.Error}
		})
	})
}

type environmentsRetryFailed struct {
	environmentFlags
	Reason string `placeholder:"TEXT" help:"Why, for the audit."`
	DryRun bool   `help:"Only count what would change."`
}

func (environmentsRetryFailed) Help() string {
	return `Copies the failed media again, each with all its attempts before it. What caused the failure must be mended first.
Media of which an event isn't finished, in this environment or in the one that it was made from, are skipped.

Example:
  ownbucket environments retry-failed --service S1 --environment staging --reason "the role may read again"`
}

func (c environmentsRetryFailed) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		done, err := environments(db).RetryFailed(ctx, c.Service, c.Environment, a.actor(), c.Reason, c.DryRun)
		if err != nil {
			return err
		}
		return a.printCounts(counts{Matched: done.Matched, Changed: done.Changed, Skipped: done.Matched - done.Changed}, c.DryRun)
	})
}
