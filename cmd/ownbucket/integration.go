package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/integration"
)

type integrationCommands struct {
	Set    integrationSet    `cmd:"" help:"Create an environment's settings, or change the named ones."`
	Show   integrationShow   `cmd:"" help:"Show an environment's settings and state."`
	List   integrationList   `cmd:"" help:"List all settings and their state."`
	Pause  integrationPause  `cmd:"" help:"Hold an environment's events."`
	Resume integrationResume `cmd:"" help:"Let a paused environment's events go on."`
	Delete integrationDelete `cmd:"" help:"Delete an environment's settings, while nothing depends on them."`
}

// place names an environment.
type place struct {
	Service     string `help:"Service ID." required:""`
	Environment string `help:"Environment ID; production without one."`
}

func (e *environment) settings(ctx context.Context, use func(*integration.Store) error) (err error) {
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return use(integration.New(db))
}

type integrationSet struct {
	place
	EnvironmentServiceID *string `name:"environment-service-id" help:"The environment's own service ID: its directory is named after it." placeholder:"ID"`
	Bucket               *string `help:"Bucket name."`
	Region               *string `help:"The bucket's region."`
	RoleARN              *string `name:"role-arn" help:"The role to assume." placeholder:"ARN"`
	ExternalID           *string `name:"external-id" help:"The role's external ID; one is made if there is none yet." placeholder:"ID"`
	Prefix               *string `help:"Directory in the bucket, of any depth; empty is its root."`
	CustomDomain         *string `help:"Where media are delivered, as in https://media.example.com." placeholder:"URL"`
	PinFileNames         *bool   `help:"Refuse renames, and re-uploads under another name." negatable:""`
	Memo                 *string `help:"Anything worth noting."`
	DistributionID       *string `name:"distribution-id" help:"CloudFront distribution." placeholder:"ID"`
	CDNPrefix            *string `name:"cdn-prefix" help:"What the viewer's path has before the key." placeholder:"PATH"`
	SkipTest             bool    `help:"Apply the settings without a connection test; needs --reason."`
	Reason               string  `help:"Why, for the audit."`
}

// Help teaches by example.
func (integrationSet) Help() string {
	return `The settings are checked for what can be checked without AWS. There is no connection test yet: --skip-test with
--reason records that they were applied untested. While files depend on them, bucket, region, prefix and directory can't
change. An external ID that is made here is printed once: the customer's trust policy needs it.

Example:
  ownbucket integration set --service S1 --bucket alpha-prod-assets --region ap-northeast-1 --prefix media \
    --role-arn arn:aws:iam::123456789012:role/SampleRole --skip-test --reason "first set-up"`
}

func (c *integrationSet) Run(ctx context.Context, e *environment) error {
	if c.SkipTest && c.Reason == "" {
		return misused("--skip-test needs --reason")
	}
	return e.settings(ctx, func(store *integration.Store) error {
		saved, err := store.Set(ctx, integration.Change{
			ServiceID: c.Service, EnvironmentID: c.Environment, EnvironmentServiceID: c.EnvironmentServiceID,
			Bucket: c.Bucket, Region: c.Region, RoleARN: c.RoleARN, ExternalID: c.ExternalID, Prefix: c.Prefix,
			CustomDomain: c.CustomDomain, PinFileNames: c.PinFileNames, Memo: c.Memo,
			DistributionID: c.DistributionID, CDNPrefix: c.CDNPrefix,
			SkipTest: c.SkipTest, Reason: c.Reason, Actor: e.actor(),
		})
		if err != nil {
			return err
		}
		if saved.GeneratedExternalID == "" {
			return e.printIntegration(saved.Integration)
		}
		return e.printWithExternalID(saved)
	})
}

// printWithExternalID shows the external ID that was made, this once.
func (e *environment) printWithExternalID(saved integration.Saved) error {
	if e.Output == "table" {
		fmt.Fprintf(e.stderr, "The external ID for the customer's trust policy, shown only now: %s\n", saved.GeneratedExternalID)
		return e.printIntegration(saved.Integration)
	}
	encoded, err := json.Marshal(saved.Integration)
	if err != nil {
		return err
	}
	object := make(map[string]any)
	if err := json.Unmarshal(encoded, &object); err != nil {
		return err
	}
	object["external_id"] = saved.GeneratedExternalID
	return e.print(object, nil)
}

func (e *environment) printIntegration(i integration.Integration) error {
	return e.print(i, func(t table.Writer) {
		fields(t, "service", i.ServiceID, "environment", i.EnvironmentID, "state", string(i.State),
			"blocked since", clock(i.BlockedSince), "blocked reason", i.BlockedReason, "next probe", clock(i.NextProbeAt),
			"bucket", i.Bucket, "region", i.Region, "role", i.RoleARN, "prefix", i.Prefix, "directory", i.Directory,
			"keys begin with", i.KeyPrefix(), "custom domain", i.CustomDomain, "file names pinned", i.PinFileNames,
			"distribution", i.DistributionID, "CDN prefix", i.CDNPrefix, "memo", i.Memo,
			"applied untested", i.TestSkippedReason, "waiting events", i.WaitingEvents, "locked", i.Locked)
	})
}

type integrationShow struct{ place }

func (c *integrationShow) Run(ctx context.Context, e *environment) error {
	return e.settings(ctx, func(store *integration.Store) error { return c.show(ctx, e, store) })
}

func (p *place) show(ctx context.Context, e *environment, store *integration.Store) error {
	found, err := store.Show(ctx, p.Service, p.Environment)
	if err != nil {
		return err
	}
	return e.printIntegration(found)
}

type integrationList struct{ listing }

func (c *integrationList) Run(ctx context.Context, e *environment) error {
	return e.settings(ctx, func(store *integration.Store) error {
		listed, err := store.List(ctx, c.Limit)
		if err != nil {
			return err
		}
		if listed == nil {
			listed = []integration.Integration{}
		}
		return e.print(listed, func(t table.Writer) {
			t.AppendHeader(table.Row{"SERVICE", "ENV", "STATE", "BUCKET", "KEYS BEGIN WITH", "WAITING", "LOCKED", "WHY"})
			for _, i := range listed {
				t.AppendRow(table.Row{i.ServiceID, i.EnvironmentID, i.State, i.Bucket, i.KeyPrefix(), i.WaitingEvents,
					i.Locked, i.BlockedReason})
			}
		})
	})
}

// because says why, for the audit.
type because struct {
	Reason string `help:"Why, for the audit."`
}

type integrationPause struct {
	place
	because
}

func (c *integrationPause) Run(ctx context.Context, e *environment) error {
	return e.settings(ctx, func(store *integration.Store) error {
		if err := store.Pause(ctx, c.Service, c.Environment, e.actor(), c.Reason); err != nil {
			return err
		}
		return c.show(ctx, e, store)
	})
}

type integrationResume struct {
	place
	because
}

func (c *integrationResume) Run(ctx context.Context, e *environment) error {
	return e.settings(ctx, func(store *integration.Store) error {
		if err := store.Resume(ctx, c.Service, c.Environment, e.actor(), c.Reason); err != nil {
			return err
		}
		return c.show(ctx, e, store)
	})
}

type integrationDelete struct {
	place
	because
}

func (c *integrationDelete) Run(ctx context.Context, e *environment) error {
	return e.settings(ctx, func(store *integration.Store) error {
		if err := store.Delete(ctx, c.Service, c.Environment, e.actor(), c.Reason); err != nil {
			return err
		}
		deleted := map[string]any{"service_id": c.Service, "environment_id": c.Environment, "deleted": true}
		return e.print(deleted, func(t table.Writer) {
			t.AppendRow(table.Row{fmt.Sprintf("deleted the settings of service %s, environment %q", c.Service, c.Environment)})
		})
	})
}
