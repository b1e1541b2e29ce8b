package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/ownbucket/ownbucket/worker"
)

type workerCommand struct {
	UntilIdle bool          `help:"Exit when nothing is left that would run by itself soon."`
	Timeout   time.Duration `help:"With --until-idle: fail if that takes longer (0: no limit)." default:"0s"`

	Concurrency            int            `help:"Events in flight, of all integrations together." default:"64" env:"OWNBUCKET_CONCURRENCY"`
	IntegrationConcurrency int            `help:"Events in flight of one integration." default:"16" env:"OWNBUCKET_INTEGRATION_CONCURRENCY"`
	LeaseDuration          time.Duration  `help:"How long a dead worker's events stay its own." default:"30s" env:"OWNBUCKET_LEASE_DURATION"`
	PollInterval           time.Duration  `help:"How often to look for events that nothing announces." default:"50ms" env:"OWNBUCKET_POLL_INTERVAL"`
	GracePeriod            time.Duration  `help:"How long running events may go on after SIGTERM." default:"30s" env:"OWNBUCKET_GRACE_PERIOD"`
	RetryBase              time.Duration  `help:"Longest delay after the first failure; it doubles, up to 12 h." default:"1s" env:"OWNBUCKET_RETRY_BASE"`
	RetryAttempts          int            `help:"After how many failures an event is dead." default:"25" env:"OWNBUCKET_RETRY_ATTEMPTS"`
	Retention              time.Duration  `help:"How long completed events are kept." default:"336h" env:"OWNBUCKET_RETENTION"`
	MaxUpload              int64          `help:"Most bytes of one media, at most 5 GB." default:"5368709120" env:"OWNBUCKET_MAX_UPLOAD"`
	FileRoot               string         `help:"Directory that file: sources are relative to; without it they are refused." placeholder:"DIR" env:"OWNBUCKET_FILE_ROOT"`
	StagingBuckets         []string       `help:"Buckets that s3:// sources may name." placeholder:"BUCKET" env:"OWNBUCKET_STAGING_BUCKETS"`
	SourceAllowCIDRs       []netip.Prefix `name:"source-allow-cidrs" env:"OWNBUCKET_SOURCE_ALLOW_CIDRS" help:"Addresses that https:// sources may have although they are private (for tests)." placeholder:"CIDR"`
	SpoolDir               string         `help:"Where uploads of unknown length are measured (default: the system's temporary directory)." placeholder:"DIR" env:"OWNBUCKET_SPOOL_DIR"`
	S3PathStyle            string         `name:"s3-path-style" env:"OWNBUCKET_S3_PATH_STYLE" help:"Address buckets by path: auto (at custom endpoints), true or false." enum:"auto,true,false" default:"auto"`
	SessionPolicyKMS       string         `name:"session-policy-kms" env:"OWNBUCKET_SESSION_POLICY_KMS" help:"Allow KMS in session policies: auto (at AWS's own STS), true or false." enum:"auto,true,false" default:"auto"`
	Brand                  string         `help:"The word in the objects' metadata." default:"microcms" env:"OWNBUCKET_BRAND"`
}

// Help teaches by example.
func (workerCommand) Help() string {
	return `Any number of workers share a PostgreSQL database; SQLite takes one. SIGTERM and SIGINT drain: nothing new
starts, what runs may finish, leases are given back, and the exit code is 0.

Examples:
  OWNBUCKET_DATABASE_URL=postgres://cms@db/cms ownbucket worker
  ownbucket worker --file-root ./media --until-idle --timeout 1m`
}

func (c *workerCommand) Validate() error {
	if c.Timeout != 0 && !c.UntilIdle {
		return errors.New("--timeout goes with --until-idle")
	}
	for _, one := range []struct {
		name string
		bad  bool
	}{
		{"--timeout", c.Timeout < 0},
		{"--concurrency", c.Concurrency < 1},
		{"--integration-concurrency", c.IntegrationConcurrency < 1},
		{"--lease-duration", c.LeaseDuration < time.Second},
		{"--poll-interval", c.PollInterval < time.Millisecond},
		{"--grace-period", c.GracePeriod <= 0},
		{"--retry-base", c.RetryBase <= 0},
		{"--retry-attempts", c.RetryAttempts < 1},
		{"--retention", c.Retention <= 0},
		{"--max-upload", c.MaxUpload < 1 || c.MaxUpload > 5<<30},
	} {
		if one.bad {
			return fmt.Errorf("%s is out of its range", one.name)
		}
	}
	return nil
}

func (c *workerCommand) Run(ctx context.Context, e *environment) (err error) {
	logger, err := e.logger()
	if err != nil {
		return err
	}
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	identity, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return fmt.Errorf("load the AWS configuration: %w", err)
	}
	w, err := worker.New(ctx, worker.Config{
		DB: db, DatabaseURL: e.DatabaseURL,
		Concurrency: c.Concurrency, IntegrationConcurrency: c.IntegrationConcurrency,
		LeaseDuration: c.LeaseDuration, Poll: c.PollInterval, Grace: c.GracePeriod,
		RetryBase: c.RetryBase, RetryAttempts: c.RetryAttempts, Retention: c.Retention,
		MaxUpload: c.MaxUpload, FileRoot: c.FileRoot, StagingBuckets: c.StagingBuckets,
		SourceAllowCIDRs: c.SourceAllowCIDRs, SpoolDir: c.SpoolDir,
		PathStyle: c.S3PathStyle, SessionPolicyKMS: c.SessionPolicyKMS, Brand: c.Brand,
		AWS: identity, Logger: logger,
	})
	if err != nil {
		return err
	}
	if c.UntilIdle {
		return w.RunUntilIdle(ctx, c.Timeout)
	}
	return w.Run(ctx)
}
