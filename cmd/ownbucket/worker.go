package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/worker"
)

type workerCommand struct {
	UntilIdle bool          `help:"Stop when nothing is left that would run by itself soon."`
	Timeout   time.Duration `placeholder:"DURATION" help:"With --until-idle: fail when it takes longer."`

	workerConfiguration
}

// workerConfiguration is what only the worker needs to know.
type workerConfiguration struct {
	FileRoot               string         `group:"worker" env:"OWNBUCKET_FILE_ROOT" placeholder:"DIRECTORY" help:"Where file: sources are read from; refused without it. It must not hold the database or the spool directory."`
	StagingBuckets         []string       `group:"worker" env:"OWNBUCKET_STAGING_BUCKETS" placeholder:"BUCKET" help:"The CMS's own buckets that s3: sources may be in; refused in any other."`
	StagingPrefix          string         `group:"worker" env:"OWNBUCKET_STAGING_PREFIX" placeholder:"PREFIX" help:"What the keys of s3: sources must begin with, such as {service_id}/ for the event's own service. Default: any key."`
	SourceAllowCIDRs       []netip.Prefix `group:"worker" name:"source-allow-cidrs" env:"OWNBUCKET_SOURCE_ALLOW_CIDRS" placeholder:"CIDR" help:"Private networks that https: sources may be in, for tests."`
	SourcePorts            []uint16       `group:"worker" env:"OWNBUCKET_SOURCE_PORTS" default:"443,80" placeholder:"PORT" help:"The ports of https: sources; refused at any other (${default})."`
	SourceMinRate          byteRate       `group:"worker" env:"OWNBUCKET_SOURCE_MIN_RATE" default:"64KiB" placeholder:"SIZE" help:"How much an https: source must send a second, on average; below it the attempt fails (${default})."`
	S3PathStyle            choice         `group:"worker" name:"s3-path-style" env:"OWNBUCKET_S3_PATH_STYLE" default:"auto" placeholder:"CHOICE" help:"Name the bucket in the path: auto (at endpoints other than AWS's), true or false (${default})."`
	Concurrency            int            `group:"worker" env:"OWNBUCKET_CONCURRENCY" default:"64" placeholder:"N" help:"Events in flight in this worker (${default})."`
	IntegrationConcurrency int            `group:"worker" env:"OWNBUCKET_INTEGRATION_CONCURRENCY" default:"16" placeholder:"N" help:"Of these, at most so many of one integration (${default})."`
	LeaseDuration          time.Duration  `group:"worker" env:"OWNBUCKET_LEASE_DURATION" default:"30s" placeholder:"DURATION" help:"After how long others take over what a dead worker had (${default})."`
	RetryBase              time.Duration  `group:"worker" env:"OWNBUCKET_RETRY_BASE" default:"1s" placeholder:"DURATION" help:"The longest delay after a first failure; it doubles up to 12 h (${default})."`
	RetryAttempts          int            `group:"worker" env:"OWNBUCKET_RETRY_ATTEMPTS" default:"25" placeholder:"N" help:"After so many failures an event is dead (${default})."`
	MaxUpload              uploadSize     `group:"worker" env:"OWNBUCKET_MAX_UPLOAD" default:"5GiB" placeholder:"SIZE" help:"The most bytes of one media, at most 5GiB (${default})."`
	MaxEventSize           eventSize      `group:"worker" env:"OWNBUCKET_MAX_EVENT_SIZE" default:"256KiB" placeholder:"SIZE" help:"The most bytes of an event's data; it is dead above (${default})."`
	SessionPolicyKMS       choice         `group:"worker" name:"session-policy-kms" env:"OWNBUCKET_SESSION_POLICY_KMS" default:"auto" placeholder:"CHOICE" help:"Allow KMS in session policies: auto (at AWS's own STS), true or false (${default})."`
	PollInterval           time.Duration  `group:"worker" env:"OWNBUCKET_POLL_INTERVAL" default:"50ms" placeholder:"DURATION" help:"How often to look for new events when nothing announces them (${default})."`
	GracePeriod            time.Duration  `group:"worker" env:"OWNBUCKET_GRACE_PERIOD" default:"30s" placeholder:"DURATION" help:"How long running events may go on once told to stop (${default})."`
	Retention              time.Duration  `group:"worker" env:"OWNBUCKET_RETENTION" default:"336h" placeholder:"DURATION" help:"How long completed events are kept (${default}, which is 14 days)."`
	SpoolDir               string         `group:"worker" env:"OWNBUCKET_SPOOL_DIR" placeholder:"DIRECTORY" help:"Where uploads of unknown length are kept for a while. Default: the system's temporary directory."`
	SpoolLimit             diskSpace      `group:"worker" env:"OWNBUCKET_SPOOL_LIMIT" default:"20GiB" placeholder:"SIZE" help:"The most bytes of uploads of unknown length there, half of them of one service; at least twice OWNBUCKET_MAX_UPLOAD (${default})."`
	WorkerName             string         `group:"worker" env:"OWNBUCKET_WORKER_NAME" placeholder:"NAME" help:"What leases and attempts call this worker. Default: host, process and a random part."`
	Brand                  string         `group:"worker" env:"OWNBUCKET_BRAND" default:"microcms" placeholder:"WORD" help:"The word in the objects' metadata (${default})."`
}

func (workerCommand) Help() string {
	return `SIGTERM or an interrupt drains: nothing new is begun, what runs may end within the grace period, and the exit
code is 0. A second signal ends it at once. AWS's usual environment variables say who we are and where AWS is.

With --until-idle it exits with 0 when nothing is available or running and no copy is due. Events that are dead, held, or
wait for a retry in the future don't matter for this.

Examples:
  ownbucket worker --database-url postgres://ownbucket@db.example/cms --staging-buckets cms-staging
  ownbucket worker --until-idle --timeout 5m`
}

// tuneCollector trades memory that a worker has to spare for time: what it
// keeps is small, and what each event allocates is not. GOGC and GOMEMLIMIT
// come first.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(96 << 20)
	}
}

// Validate is called by the parser.
func (c workerCommand) Validate() error {
	var wrong []error
	for _, number := range []struct {
		flag  string
		value int
	}{
		{"concurrency", c.Concurrency}, {"integration-concurrency", c.IntegrationConcurrency},
		{"retry-attempts", c.RetryAttempts},
	} {
		if number.value < 1 {
			wrong = append(wrong, fmt.Errorf("--%s must be at least 1, but is %d", number.flag, number.value))
		}
	}
	for _, duration := range []struct {
		flag  string
		value time.Duration
	}{
		{"lease-duration", c.LeaseDuration}, {"retry-base", c.RetryBase}, {"poll-interval", c.PollInterval},
		{"grace-period", c.GracePeriod}, {"retention", c.Retention},
	} {
		if duration.value <= 0 {
			wrong = append(wrong, fmt.Errorf("--%s must be above 0, but is %s", duration.flag, duration.value))
		}
	}
	if err := media.CheckSpoolLimit(int64(c.SpoolLimit), int64(c.MaxUpload)); err != nil {
		wrong = append(wrong, err)
	}
	if c.Timeout < 0 || c.Timeout > 0 && !c.UntilIdle {
		wrong = append(wrong, errors.New("--timeout must not be negative, and goes with --until-idle"))
	}
	return errors.Join(wrong...)
}

func (c workerCommand) Run(ctx context.Context, a *app) error {
	logger, err := a.logger()
	if err != nil {
		return err
	}
	aws, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return fmt.Errorf("read AWS's configuration: %w", err)
	}
	tuneCollector()
	return a.withDatabase(ctx, func(db *database.DB) error {
		w, err := worker.New(ctx, worker.Config{
			DB: db, DatabaseURL: a.DatabaseURL, Name: c.WorkerName,
			Concurrency: c.Concurrency, IntegrationConcurrency: c.IntegrationConcurrency,
			LeaseDuration: c.LeaseDuration, Poll: c.PollInterval, Grace: c.GracePeriod,
			RetryBase: c.RetryBase, RetryAttempts: c.RetryAttempts, Retention: c.Retention,
			MaxUpload: int64(c.MaxUpload), FileRoot: c.FileRoot, StagingBuckets: c.StagingBuckets, StagingPrefix: c.StagingPrefix,
			SourceAllowCIDRs: c.SourceAllowCIDRs, SourcePorts: c.SourcePorts, SourceMinRate: int64(c.SourceMinRate), MaxEventSize: int(c.MaxEventSize), SpoolDir: c.SpoolDir, SpoolLimit: int64(c.SpoolLimit), PathStyle: string(c.S3PathStyle),
			SessionPolicyKMS: string(c.SessionPolicyKMS), Brand: c.Brand, AWS: aws, Logger: logger,
		})
		if err != nil {
			return err
		}
		if c.UntilIdle {
			return w.RunUntilIdle(ctx, c.Timeout)
		}
		return w.Run(ctx)
		// A worker that stands still must not keep others from what it held, and one that
		// is kept waiting says so.
	}, database.IdleInTransaction(c.LeaseDuration/4), database.LockTimeout(c.LeaseDuration))
}
