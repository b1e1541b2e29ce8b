// Package worker is the process that consumes the outbox: a Watermill router
// with our subscriber and middleware, and the loops beside it that take
// snapshots and copy environments, probe blocked integrations and prune.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/handlers"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// Config says how a worker runs. The zero value of each field but DB and AWS
// means its default.
type Config struct {
	// DB is migrated to the current schema. DatabaseURL, on PostgreSQL, lets
	// the worker listen for new events instead of polling alone.
	DB          *database.DB
	DatabaseURL string `json:"-"`
	// Name tells workers apart in leases and attempts; the host's by default.
	Name string
	// Concurrency bounds the events in flight (64), IntegrationConcurrency
	// those of one integration (16).
	Concurrency, IntegrationConcurrency int
	// LeaseDuration is how long a dead worker's lanes stay its own (30 s).
	LeaseDuration time.Duration
	// Poll is how often new events are looked for when nothing announces them
	// (50 ms).
	Poll time.Duration
	// Grace is how long running events may go on after a shutdown began (30 s).
	Grace time.Duration
	// RetryBase is the longest delay after the first failure (1 s); it doubles
	// up to 12 h. An event is dead after RetryAttempts failures (25).
	RetryBase     time.Duration
	RetryAttempts int
	// Retention is how long completed events are kept (14 days).
	Retention time.Duration
	// MaxUpload is the most bytes of one media, at most 5 GB.
	MaxUpload int64
	// MaxEventSize is the most bytes of an event's data (256 KiB). Larger ones are dead.
	MaxEventSize int
	// FileRoot, StagingBuckets and SourceAllowCIDRs open upload sources. The
	// root must hold neither an SQLite database nor SpoolDir.
	FileRoot         string
	StagingBuckets   []string
	SourceAllowCIDRs []netip.Prefix
	// StagingPrefix is what the keys of s3: sources must begin with.
	StagingPrefix string
	// SourcePorts are the ports of https: sources (443 and 80).
	SourcePorts []uint16
	// SourceMinRate is how many bytes a second https: sources must send on
	// average (64 KiB).
	SourceMinRate int64
	// SpoolDir holds uploads of unknown length (the system's temporary directory):
	// SpoolLimit bytes at most (20 GiB), and half of that of one service. The limit
	// must be at least twice MaxUpload.
	SpoolDir   string
	SpoolLimit int64
	// PathStyle and SessionPolicyKMS are auto, true or false.
	PathStyle, SessionPolicyKMS string
	// Brand is the word in the objects' metadata ("microcms").
	Brand string
	// AWS is our own identity, region and endpoints.
	AWS aws.Config
	// Transport replaces the way to the customers' AWS accounts, for tests.
	Transport http.RoundTripper
	Logger    *slog.Logger
}

// Format keeps the database's password out of all that is printed.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "configuration of worker %q", c.Name) }

// lazily is how many polls of the outbox go by between two looks at what is
// rarely due, or announced by a wake-up: copies and probes.
const lazily = 5

func (c *Config) setDefaults() error {
	if c.DB == nil {
		return errors.New("a worker needs a database")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name the worker: %w", err)
		}
		c.Name = fmt.Sprintf("%s-%d-%s", host, os.Getpid(), uuid.NewString()[:8])
	}
	setDefault(&c.Concurrency, 64)
	setDefault(&c.IntegrationConcurrency, 16)
	setDefault(&c.LeaseDuration, 30*time.Second)
	setDefault(&c.Poll, 50*time.Millisecond)
	setDefault(&c.Grace, 30*time.Second)
	setDefault(&c.RetryBase, time.Second)
	setDefault(&c.RetryAttempts, 25)
	setDefault(&c.Retention, 14*24*time.Hour)
	setDefault(&c.MaxUpload, media.MaxUpload)
	setDefault(&c.MaxEventSize, outbox.MaxEventSize)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// Worker consumes the outbox of one database.
type Worker struct {
	config       Config
	outbox       *outbox.Store
	ledger       *ledger.Store
	settings     *integration.Store
	environments *environment.Store
	buckets      *bucket.Pool
	handlers     *handlers.Handlers
	subscriber   *subscriber.Subscriber
	observe      *observer
	backoff      func(failures int) time.Duration
}

// New wires a worker. Nothing runs before Run.
func New(_ context.Context, config Config) (*Worker, error) {
	if err := config.setDefaults(); err != nil {
		return nil, err
	}
	w := &Worker{config: config, backoff: backoff(config.RetryBase)}
	var err error
	if w.buckets, err = bucket.NewPool(bucket.Options{
		AWS: config.AWS, PathStyle: config.PathStyle, SessionPolicyKMS: config.SessionPolicyKMS, Brand: config.Brand,
		Transport: config.Transport,
	}); err != nil {
		return nil, err
	}
	sources, err := media.New(media.Options{
		FileRoot: config.FileRoot, Database: config.DB.Path, StagingBuckets: config.StagingBuckets, AllowCIDRs: config.SourceAllowCIDRs,
		StagingPrefix: config.StagingPrefix, SourcePorts: config.SourcePorts, MinRate: config.SourceMinRate,
		MaxUpload: config.MaxUpload, SpoolDir: config.SpoolDir, SpoolLimit: config.SpoolLimit, S3: stagingClient(config),
	})
	if err != nil {
		return nil, err
	}
	w.ledger = ledger.New(config.DB)
	w.settings = integration.New(config.DB)
	w.environments = environment.New(config.DB, w.ledger, w.settings, w.buckets, environment.Options{
		Lease: config.LeaseDuration, Concurrency: config.IntegrationConcurrency,
		Attempts: config.RetryAttempts, Backoff: w.backoff,
	})
	w.outbox = outbox.New(config.DB, w.environments)
	w.outbox.MaxEventSize = config.MaxEventSize
	w.handlers = &handlers.Handlers{
		Ledger: w.ledger, Settings: w.settings, Buckets: w.buckets, Sources: sources, Outbox: w.outbox,
		Environments: w.environments,
	}
	if w.observe, err = newObserver(config.Logger); err != nil {
		return nil, err
	}
	w.subscriber, err = subscriber.New(w.outbox, subscriber.Config{
		Worker: config.Name, Concurrency: config.Concurrency, LaneConcurrency: config.IntegrationConcurrency,
		Lease: config.LeaseDuration, Poll: config.Poll, Grace: config.Grace, Logger: config.Logger,
		Created: w.environments.Wake, Failed: w.unsettled,
	})
	return w, err
}

func stagingClient(config Config) *s3.Client {
	if len(config.StagingBuckets) == 0 {
		return nil
	}
	custom := config.AWS.BaseEndpoint != nil || os.Getenv("AWS_ENDPOINT_URL_S3") != "" || os.Getenv("AWS_ENDPOINT_URL") != ""
	return s3.NewFromConfig(config.AWS, func(o *s3.Options) {
		o.UsePathStyle = config.PathStyle == "true" || config.PathStyle != "false" && custom
	})
}

// Wake makes the worker look for new events now; who publishes in the same
// process may call it after committing.
func (w *Worker) Wake() { w.subscriber.Wake() }

// Run consumes until the context ends, then drains and returns nil. It fails
// if it can't begin.
func (w *Worker) Run(ctx context.Context) (err error) {
	if w.config.DB.Dialect == database.SQLite {
		release, err := database.LockWorker(w.config.DB.Path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
		if err := w.outbox.VoidLeases(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	stopWatching, err := w.observe.watchSpool(w.handlers.Sources.Spooled)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopWatching()) }()
	router, err := w.router()
	if err != nil {
		return err
	}
	// The router outlives ctx: it carries what is still being drained.
	routing, stopRouting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRouting()
	routed := make(chan error, 1)
	go func() { routed <- router.Run(routing) }()
	select {
	case <-router.Running():
	case err := <-routed:
		return fmt.Errorf("start the router: %w", err)
	}

	w.config.Logger.Info("worker started", "worker", w.config.Name, "concurrency", w.config.Concurrency)
	var loops sync.WaitGroup
	loops.Go(func() { w.environments.Run(ctx, lazily*w.config.Poll, w.config.Logger) })
	loops.Go(func() { w.probeLoop(ctx) })
	loops.Go(func() { w.pruneLoop(ctx) })
	if w.config.DB.Dialect == database.PostgreSQL && w.config.DatabaseURL != "" {
		loops.Go(func() {
			subscriber.Listen(ctx, w.config.DatabaseURL, w.config.DB.Schema, w.subscriber.Wake, w.config.Logger)
		})
	}
	err = w.subscriber.Run(ctx)
	loops.Wait()
	err = errors.Join(err, router.Close())
	stopRouting()
	err = errors.Join(err, <-routed)
	w.buckets.CloseIdleConnections()
	w.config.Logger.Info("worker stopped", "worker", w.config.Name)
	return err
}

// ErrTimeout says that work was left when the time was up.
var ErrTimeout = errors.New("not idle in time")

// RunUntilIdle runs until nothing is left that would run by itself soon. It
// fails with ErrTimeout if that takes longer than the timeout, where 0 means
// none.
func (w *Worker) RunUntilIdle(ctx context.Context, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, ErrTimeout)
		defer cancel()
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	w.subscriber.Hurry()
	done := make(chan error, 1)
	go func() { done <- w.Run(running) }()

	tick := time.NewTicker(w.config.Poll)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if cause := context.Cause(ctx); errors.Is(cause, ErrTimeout) {
				return errors.Join(err, cause)
			}
			return err
		case <-tick.C:
		}
		idle, err := w.outbox.Idle(ctx)
		if err == nil && idle {
			stop()
			return <-done
		}
	}
}

func (w *Worker) router() (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: w.config.Grace + 10*time.Second},
		watermill.NewSlogLogger(w.config.Logger))
	if err != nil {
		return nil, fmt.Errorf("make the router: %w", err)
	}
	w.register(router)
	return router, nil
}
