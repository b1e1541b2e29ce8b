package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/media"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/telemetry"
	"github.com/ownbucket/ownbucket/migrations"
)

const defaultDatabase = "sqlite:ownbucket.db"

// configuration is what every command knows.
type configuration struct {
	DatabaseURL string     `group:"configuration" env:"OWNBUCKET_DATABASE_URL" default:"${database}" placeholder:"URL" help:"Where events wait: sqlite:PATH or postgres://USER@HOST/DATABASE. Default: ${database}, in the working directory."`
	Schema      string     `group:"configuration" env:"OWNBUCKET_SCHEMA" default:"ownbucket" placeholder:"NAME" help:"PostgreSQL's schema with Ownbucket's tables (${default})."`
	Output      string     `group:"configuration" env:"OWNBUCKET_OUTPUT" short:"o" enum:"table,json" default:"table" placeholder:"FORMAT" help:"How results are printed: table or json (${default})."`
	Actor       string     `group:"configuration" env:"OWNBUCKET_ACTOR" placeholder:"NAME" help:"Who the audit says did it. Default: the user of this system."`
	LogFormat   string     `group:"configuration" env:"OWNBUCKET_LOG_FORMAT" enum:"text,json" default:"text" placeholder:"FORMAT" help:"How logs are written, on standard error: text or json (${default})."`
	LogLevel    slog.Level `group:"configuration" env:"OWNBUCKET_LOG_LEVEL" default:"info" placeholder:"LEVEL" help:"From which level up: debug, info, warn or error (${default})."`
}

// app is what a command runs with.
type app struct {
	*configuration
	stdin          *os.File
	stdout, stderr *os.File
}

func (a *app) logger() (*slog.Logger, error) {
	return telemetry.NewLogger(a.stderr, a.LogFormat, a.LogLevel)
}

// connect opens the database whatever tables it has.
func (a *app) connect(ctx context.Context, options ...database.Option) (*database.DB, error) {
	logger, err := a.logger()
	if err != nil {
		return nil, err
	}
	db, err := database.Open(ctx, a.DatabaseURL, a.Schema, options...)
	if err != nil {
		return nil, err
	}
	db.Waiting = func(purpose string) {
		logger.Warn("another process holds a lock of the database: waiting until it lets go or ends", "lock", purpose)
	}
	return db, nil
}

// withDatabase runs fn on a database with this program's tables. SQLite's are
// brought up to date on the way; PostgreSQL's are shared, so that a person
// decides when.
func (a *app) withDatabase(ctx context.Context, fn func(*database.DB) error, options ...database.Option) (err error) {
	db, err := a.connect(ctx, options...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if db.Dialect == database.SQLite {
		_, err = migrations.Up(ctx, db)
	} else {
		err = migrations.Check(ctx, db)
	}
	if err != nil {
		return err
	}
	return fn(db)
}

// environments are for looking and for records: no command but the worker
// talks to AWS, so they get no buckets.
func environments(db *database.DB) *environment.Store {
	return environment.New(db, ledger.New(db), integration.New(db), nil, environment.Options{})
}

func openOutbox(db *database.DB) *outbox.Store { return outbox.New(db, environments(db)) }

// actor is who the audit names.
func (a *app) actor() string {
	if a.Actor != "" {
		return a.Actor
	}
	if current, err := user.Current(); err == nil {
		return current.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}

// choice is a switch that may be left to the program.
type choice string

// UnmarshalText reads auto, or what usually means yes or no.
func (c *choice) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "auto":
		*c = "auto"
	case "true", "on", "yes", "1":
		*c = "true"
	case "false", "off", "no", "0":
		*c = "false"
	default:
		return fmt.Errorf("%q is none of auto, true, false", text)
	}
	return nil
}

// uploadSize is the most bytes of one media.
type uploadSize int64

// UnmarshalText reads bytes, also with a unit: 5368709120, 5GiB, 200MB.
func (s *uploadSize) UnmarshalText(text []byte) error {
	size, err := humanize.ParseBytes(string(text))
	if err != nil {
		return fmt.Errorf("%q is no size: use bytes, or a unit as in 200MB or 5GiB", text)
	}
	if size == 0 || size > uint64(media.MaxUpload) {
		return fmt.Errorf("%s: use 1 to %d bytes (5GiB), the most that one PUT can carry", text, media.MaxUpload)
	}
	*s = uploadSize(size)
	return nil
}

// eventSize is the most bytes of an event's payload.
type eventSize int

// UnmarshalText reads bytes, also with a unit: 262144, 256KiB.
func (s *eventSize) UnmarshalText(text []byte) error {
	size, err := humanize.ParseBytes(string(text))
	if err != nil || size < 32<<10 || size > 16<<20 {
		return fmt.Errorf("%q is no size of 32KiB to 16MiB: a valid event may take 32KiB, and many are in memory at once", text)
	}
	*s = eventSize(size)
	return nil
}

// byteRate is a number of bytes a second.
type byteRate int64

// UnmarshalText reads bytes, also with a unit: 65536, 64KiB.
func (r *byteRate) UnmarshalText(text []byte) error {
	rate, err := humanize.ParseBytes(string(text))
	if err != nil || rate == 0 || rate > math.MaxInt64 {
		return fmt.Errorf("%q is no rate above 0: use bytes a second, or a unit as in 64KiB", text)
	}
	*r = byteRate(rate)
	return nil
}

// diskSpace is a number of bytes on a disk.
type diskSpace int64

// UnmarshalText reads bytes, also with a unit: 21474836480, 20GiB.
func (d *diskSpace) UnmarshalText(text []byte) error {
	size, err := humanize.ParseBytes(string(text))
	if err != nil || size > math.MaxInt64 {
		return fmt.Errorf("%q is no size: use bytes, or a unit as in 20GiB", text)
	}
	*d = diskSpace(size)
	return nil
}
