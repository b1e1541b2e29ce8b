// Package dev demonstrates the whole way of an event: it starts stand-ins for
// S3, STS and CloudFront on loopback, publishes a sample of all five events
// with real files, lets a worker do them, shows what happened in the bucket,
// and checks that it is what should have happened.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/migrations"
	"github.com/ownbucket/ownbucket/worker"
)

// Options are the flags of `ownbucket dev`.
type Options struct {
	Once bool   `help:"Exit when everything was shown: with 0 if all is as it should be."`
	Dir  string `help:"Keep the database and the files here (default: a temporary directory)." placeholder:"DIR"`
}

const (
	service     = "SERVICE#demo"
	environ     = "staging"
	environName = "demo-staging" // the environment's own service ID
	bucketName  = "demo-customer-assets"
	prefix      = "media"
	region      = "ap-northeast-1"
)

// Run shows it all, and stays until the context ends unless asked to do it
// once. It fails if anything is not as it should be.
func Run(ctx context.Context, options Options, out io.Writer) (err error) {
	d, err := start(ctx, options, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.show(ctx); err != nil {
		return err
	}
	if options.Once {
		return nil
	}
	return d.stay(ctx)
}

type demo struct {
	out       io.Writer
	dir       string
	temporary bool
	db        *database.DB
	aws       *awslocal.Server
	ours      awslocal.Credentials
	customer  awslocal.Customer
	worker    worker.Config
	outbox    *outbox.Store
	settings  *integration.Store
}

func start(ctx context.Context, options Options, out io.Writer) (_ *demo, err error) {
	d := &demo{out: out, dir: options.Dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "ownbucket-dev-"); err != nil {
			return nil, fmt.Errorf("make a directory: %w", err)
		}
		d.temporary = true
	}
	if err := os.MkdirAll(d.files(), 0o750); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	if d.aws, err = awslocal.Start(awslocal.Config{}); err != nil {
		return nil, fmt.Errorf("start the stand-ins: %w", err)
	}
	if d.ours, err = d.aws.AddUser(awslocal.User{Name: "ownbucket"}); err != nil {
		return nil, err
	}
	if d.customer, err = d.aws.AddCustomer(awslocal.Customer{Bucket: bucketName, Prefix: prefix, Region: region,
		Options: awslocal.BucketOptions{Region: region, Public: true}}); err != nil {
		return nil, err
	}
	if d.db, err = database.Open(ctx, d.databaseURL(), ""); err != nil {
		return nil, err
	}
	if _, err := migrations.Up(ctx, d.db); err != nil {
		return nil, err
	}
	d.settings = integration.New(d.db)
	d.outbox = outbox.New(d.db, environment.New(d.db, ledger.New(d.db), d.settings, nil, environment.Options{}))
	d.worker = worker.Config{
		DB: d.db, Name: "dev", FileRoot: d.files(), RetryBase: 50 * time.Millisecond,
		AWS: aws.Config{
			Region:       region,
			Credentials:  credentials.NewStaticCredentialsProvider(d.ours.AccessKeyID, d.ours.SecretAccessKey, ""),
			BaseEndpoint: aws.String(d.aws.Endpoint()),
		},
		Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	return d, d.setIntegration(ctx)
}

func (d *demo) setIntegration(ctx context.Context) error {
	if _, err := d.settings.Show(ctx, service, ""); err == nil {
		return errors.New("the directory holds an earlier demonstration: choose another --dir, or remove it")
	}
	bucket, at, under := bucketName, region, prefix
	_, err := d.settings.Set(ctx, integration.Change{
		ServiceID: service, Bucket: &bucket, Region: &at, Prefix: &under,
		RoleARN: &d.customer.RoleARN, ExternalID: &d.customer.ExternalID,
		SkipTest: true, Reason: "demonstration", Actor: "dev",
	})
	return err
}

func (d *demo) files() string       { return filepath.Join(d.dir, "files") }
func (d *demo) databaseURL() string { return "sqlite:" + filepath.Join(d.dir, "ownbucket.db") }

func (d *demo) close() error {
	var err error
	if d.db != nil {
		err = d.db.Close()
	}
	if d.aws != nil {
		d.aws.Close()
	}
	if d.temporary {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

// stay keeps a worker running until the context ends, and says what to try.
func (d *demo) stay(ctx context.Context) error {
	fmt.Fprintf(d.out, `
The stand-ins and a worker go on until Ctrl-C. In another terminal:

  export OWNBUCKET_DATABASE_URL='%s'
  bin/ownbucket events list
  bin/ownbucket media show --service '%s' --media logo
  echo '{"type":"MediaDeleted","service_id":"%s","data":{"media_id":"logo","file_name":"logo.png","version":"%s"}}' \
    | bin/ownbucket publish
  curl -s %s

S3, STS and CloudFront: %s
Files for file: sources: %s
`, d.databaseURL(), service, service, time.Now().UTC().Format(time.RFC3339),
		d.aws.ObjectURL(bucketName, prefix+"/guide.txt"), d.aws.Endpoint(), d.files())
	w, err := worker.New(ctx, d.worker)
	if err != nil {
		return err
	}
	return w.Run(ctx)
}
