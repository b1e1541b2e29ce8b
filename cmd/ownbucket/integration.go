package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/integration"
)

type integrationCommand struct {
	Set    integrationSet    `cmd:"" help:"Create an environment's settings, or change some of them."`
	Show   integrationShow   `cmd:"" help:"One environment's settings and how they fare."`
	List   integrationList   `cmd:"" help:"List all settings."`
	Pause  integrationPause  `cmd:"" help:"Hold an environment's events."`
	Resume integrationResume `cmd:"" help:"End a pause."`
	Delete integrationDelete `cmd:"" help:"Remove an environment's settings."`
}

type integrationSet struct {
	environmentFlags
	EnvironmentServiceID *string `placeholder:"ID" help:"The environment's own service ID, which its directory is named after. Not for production."`
	Bucket               *string `placeholder:"NAME" help:"The customer's bucket."`
	Region               *string `placeholder:"REGION" help:"The bucket's region."`
	RoleARN              *string `name:"role-arn" placeholder:"ARN" help:"The role to assume."`
	ExternalID           *string `placeholder:"ID" help:"The external ID that the role asks for. One is made for new settings without it."`
	Prefix               *string `placeholder:"PATH" help:"What keys begin with, as in media/path; the bucket's root without it."`
	CustomDomain         *string `placeholder:"URL" help:"Where files are served from, as in https://media.example.com."`
	PinFileNames         *bool   `placeholder:"BOOL" help:"Refuse renames, and uploads under another name."`
	Memo                 *string `placeholder:"TEXT" help:"Anything worth remembering."`
	DistributionID       *string `placeholder:"ID" help:"The CloudFront distribution, kept for a later release: nothing is purged yet."`
	CDNPrefix            *string `name:"cdn-prefix" placeholder:"PATH" help:"What the viewers' paths have before the key, kept for a later release."`
	SkipTest             bool    `help:"Apply the settings without a connection test; needs --reason."`
	ConfirmSharedRole    bool    `help:"The role may be another service's as well; needs --reason."`
	Reason               string  `placeholder:"TEXT" help:"Why, for the audit."`
}

func (integrationSet) Help() string {
	return `Fields that aren't named stay as they are. What is checked: the form of every field, that nothing is stored under
the settings if bucket, region or prefix change, that the place is no other environment's, and that no other service has
the external ID. A role that another service has needs --confirm-shared-role, or --skip-test. AWS is not asked: the
connection test comes with a later release, and until then every change is applied untested; with --skip-test the
reason is kept with the settings. A change of settings that are blocked is tried out at once by the worker.

Examples:
  ownbucket integration set --service S1 --bucket alpha-prod-assets --region ap-northeast-1 \
      --role-arn arn:aws:iam::123456789012:role/SampleRole --prefix media --skip-test --reason "first set-up"
  ownbucket integration set --service S1 --pin-file-names=false
  ownbucket integration set --service S1 --environment staging --environment-service-id S1-staging --bucket …`
}

// Validate is called by the parser.
func (c integrationSet) Validate() error {
	if strings.TrimSpace(c.Reason) == "" {
		switch {
		case c.SkipTest:
			return errors.New("--skip-test needs a --reason")
		case c.ConfirmSharedRole:
			return errors.New("--confirm-shared-role needs a --reason")
		}
	}
	return nil
}

func (c integrationSet) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		saved, err := integration.New(db).Set(ctx, integration.Change{
			ServiceID: c.Service, EnvironmentID: c.Environment, EnvironmentServiceID: c.EnvironmentServiceID,
			Bucket: c.Bucket, Region: c.Region, RoleARN: c.RoleARN, ExternalID: c.ExternalID, Prefix: c.Prefix,
			CustomDomain: c.CustomDomain, PinFileNames: c.PinFileNames, Memo: c.Memo,
			DistributionID: c.DistributionID, CDNPrefix: c.CDNPrefix,
			SkipTest: c.SkipTest, ConfirmSharedRole: c.ConfirmSharedRole, Reason: c.Reason, Actor: a.actor(),
		})
		if err != nil {
			return err
		}
		if saved.GeneratedExternalID == "" {
			return a.printIntegration(saved.Integration)
		}
		if a.Output == "json" {
			return a.printWithExternalID(saved)
		}
		fmt.Fprintf(a.stderr, "The role's trust policy must ask for this external ID, which isn't shown again:\n%s\n",
			saved.GeneratedExternalID)
		return a.printIntegration(saved.Integration)
	})
}

// printWithExternalID is the one time that an external ID is shown: we made it
// up, and the customer's trust policy needs it.
func (a *app) printWithExternalID(saved integration.Saved) error {
	encoded, err := json.Marshal(saved.Integration)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		return err
	}
	fields["external_id"] = saved.GeneratedExternalID
	return writeJSON(a.stdout, fields)
}

func (a *app) printIntegration(i integration.Integration) error {
	return printOne(a, i,
		field{"service", i.ServiceID}, field{"environment", place(i.EnvironmentID)},
		field{"state", string(i.State)}, field{"blocked since", at(i.BlockedSince)}, field{"blocked by", i.BlockedCode},
		field{"reason", i.BlockedReason}, field{"next probe", at(i.NextProbeAt)},
		field{"waiting events", strconv.FormatInt(i.WaitingEvents, 10)}, field{"locked", yesNo(i.Locked)},
		field{"bucket", i.Bucket}, field{"region", i.Region}, field{"role ARN", i.RoleARN},
		field{"key prefix", i.KeyPrefix()}, field{"environment's service ID", i.EnvironmentServiceID},
		field{"custom domain", i.CustomDomain}, field{"pin file names", yesNo(i.PinFileNames)}, field{"memo", i.Memo},
		field{"distribution", i.DistributionID}, field{"CDN prefix", i.CDNPrefix},
		field{"untested because", i.TestSkippedReason}, field{"changed", at(i.UpdatedAt)})
}

type integrationShow struct{ environmentFlags }

func (integrationShow) Help() string {
	return `The external ID is never shown. Locked settings can't move to another bucket, region, prefix or environment
service ID.

Examples:
  ownbucket integration show --service S1
  ownbucket integration show --service S1 --environment staging --output json`
}

func (c integrationShow) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		shown, err := integration.New(db).Show(ctx, c.Service, c.Environment)
		if err != nil {
			return err
		}
		return a.printIntegration(shown)
	})
}

type integrationList struct{ limited }

func (integrationList) Help() string {
	return `Example:
  ownbucket integration list --output json`
}

func (c integrationList) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		listed, err := integration.New(db).List(ctx, c.Limit)
		if err != nil {
			return err
		}
		a.noteCut(len(listed), c.limited)
		header := columns{"service", "environment", "state", "bucket", "region", "key prefix", "waiting", "locked", "reason"}
		return printList(a, listed, header, func(i integration.Integration) []string {
			return []string{i.ServiceID, place(i.EnvironmentID), string(i.State), i.Bucket, i.Region, i.KeyPrefix(),
				strconv.FormatInt(i.WaitingEvents, 10), yesNo(i.Locked), shorten(i.BlockedReason, 60)}
		})
	})
}

// reasoned is an action on one environment's settings.
type reasoned struct {
	environmentFlags
	Reason string `placeholder:"TEXT" help:"Why, for the audit."`
}

type integrationPause struct{ reasoned }

func (integrationPause) Help() string {
	return `Events stay where they are and lose no attempt; what runs already ends.

Example:
  ownbucket integration pause --service S1 --reason "the customer moves the bucket tonight"`
}

func (c integrationPause) Run(ctx context.Context, a *app) error {
	return a.changeIntegration(ctx, c.reasoned, (*integration.Store).Pause)
}

type integrationResume struct{ reasoned }

func (integrationResume) Help() string {
	return `Events go on in their order. Settings that are blocked, too, stay blocked until a probe succeeds.

Example:
  ownbucket integration resume --service S1 --reason "the bucket was moved"`
}

func (c integrationResume) Run(ctx context.Context, a *app) error {
	return a.changeIntegration(ctx, c.reasoned, (*integration.Store).Resume)
}

func (a *app) changeIntegration(ctx context.Context, c reasoned,
	change func(*integration.Store, context.Context, string, string, string, string) error) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		settings := integration.New(db)
		if err := change(settings, ctx, c.Service, c.Environment, a.actor(), c.Reason); err != nil {
			return err
		}
		shown, err := settings.Show(ctx, c.Service, c.Environment)
		if err != nil {
			return err
		}
		return a.printIntegration(shown)
	})
}

type integrationDelete struct{ reasoned }

func (integrationDelete) Help() string {
	return `Refused while files are stored under the settings, or work on them is unfinished.

Example:
  ownbucket integration delete --service S1 --reason "the customer left"`
}

func (c integrationDelete) Run(ctx context.Context, a *app) error {
	return a.withDatabase(ctx, func(db *database.DB) error {
		if err := integration.New(db).Delete(ctx, c.Service, c.Environment, a.actor(), c.Reason); err != nil {
			return err
		}
		deleted := struct {
			ServiceID     string `json:"service_id"`
			EnvironmentID string `json:"environment_id"`
			Deleted       bool   `json:"deleted"`
		}{c.Service, c.Environment, true}
		return printOne(a, deleted, field{"service", c.Service}, field{"environment", place(c.Environment)}, field{"deleted", "yes"})
	})
}
