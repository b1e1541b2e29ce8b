// Command ownbucket keeps a CMS's media in its customers' own S3 buckets.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// The exit codes are a contract.
const (
	exitDone = iota
	exitFailed
	exitUsage
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// cli is the command line: what each command does stands in its own file.
type cli struct {
	Globals

	Worker       workerCommand       `cmd:"" help:"Consume events and do their work in the customers' buckets."`
	Dev          devCommand          `cmd:"" help:"Run a demonstration on embedded stand-ins for AWS."`
	Migrate      migrateCommands     `cmd:"" help:"Bring the database's tables up to date."`
	Publish      publishCommand      `cmd:"" help:"Publish events from JSON lines."`
	Events       eventsCommands      `cmd:"" help:"Find events, see why they failed, replay or discard them."`
	Media        mediaCommands       `cmd:"" help:"See what is stored of a media, and where."`
	Integration  integrationCommands `cmd:"" help:"A customer's settings: which bucket, through which role."`
	Environments environmentCommands `cmd:"" help:"Copies of environments and their progress."`
	Stats        statsCommand        `cmd:"" help:"Count events by state."`
	Version      versionCommand      `cmd:"" help:"Print the version."`
}

// usageError is wrong usage that the parser can't see.
type usageError struct{ error }

func misused(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	var c cli
	exited := false
	parser, err := kong.New(&c, kong.Name("ownbucket"), kong.Description(description),
		kong.Writers(stdout, stderr), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Exit(func(status int) { exited, code = true, status }))
	if err != nil {
		fmt.Fprintln(stderr, "ownbucket:", err)
		return exitFailed
	}
	parsed, err := parser.Parse(args)
	if exited {
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "ownbucket: %v\nSee `ownbucket --help`.\n", err)
		return exitUsage
	}

	// The first signal drains; after that, a second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(&environment{Globals: &c.Globals, stdin: stdin, stdout: stdout, stderr: stderr})
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "ownbucket: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "ownbucket: %v\n", err)
		return exitFailed
	}
}

const description = `Ownbucket keeps the media of a CMS in its customers' own S3 buckets.

The CMS publishes events into an outbox, in its own transaction; "worker" consumes them. Settings can be given as environment
variables: --database-url is OWNBUCKET_DATABASE_URL. Credentials and endpoints of AWS are taken from its
standard environment variables and profiles. Without a database URL, SQLite in ./ownbucket.db is used.`
