// Command ownbucket runs the worker and is what operators look at and act
// through. Each file holds one group of commands: it parses, wires and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/alecthomas/kong"
)

// The exit codes are a contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

const description = `Keeps a CMS's media in its customers' own S3 buckets.

A first look, with everything embedded: ownbucket dev`

// cli is the whole command line.
type cli struct {
	configuration

	Worker       workerCommand       `cmd:"" help:"Consume events until told to stop."`
	Dev          devCommand          `cmd:"" help:"Show the whole way on embedded stand-ins."`
	Migrate      migrateCommand      `cmd:"" help:"Bring the database's tables up to this program."`
	Publish      publishCommand      `cmd:"" help:"Publish events from JSON lines."`
	Integration  integrationCommand  `cmd:"" help:"Customers' settings."`
	Events       eventsCommand       `cmd:"" help:"Look at events, replay or discard them."`
	Media        mediaCommand        `cmd:"" help:"Look at a stored media."`
	Environments environmentsCommand `cmd:"" help:"Copies of whole environments."`
	Stats        statsCommand        `cmd:"" help:"Count events by state."`
	Version      versionCommand      `cmd:"" help:"Tell which version this is."`
}

// usageError is what the parser refuses.
type usageError struct{ error }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Once the first signal has been seen, the second one kills.
	context.AfterFunc(ctx, stop)

	unsetEmpty()
	if err := checkText(args); err != nil {
		return complain(usageError{err})
	}
	var commands cli
	parser, err := newParser(&commands)
	if err != nil {
		return complain(err)
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return complain(usageError{err})
	}
	a := &app{configuration: &commands.configuration, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return complain(parsed.Run(a))
}

func newParser(commands *cli) (*kong.Kong, error) {
	return kong.New(commands,
		kong.Name("ownbucket"), kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "configuration", Title: "Configuration (each also as an environment variable):"},
			{Key: "worker", Title: "Worker configuration (each also as an environment variable):"},
			{Key: "filter", Title: "Filters (an event must match all of them):"},
		}),
		kong.Vars{"database": defaultDatabase, "states": states},
	)
}

// unsetEmpty makes an empty OWNBUCKET_ variable as good as none: deployment
// tools set what nobody filled in.
func unsetEmpty() {
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); value == "" && strings.HasPrefix(name, "OWNBUCKET_") {
			_ = os.Unsetenv(name)
		}
	}
}

// checkText refuses what the parser would silently replace characters of.
func checkText(args []string) error {
	for n, arg := range args {
		if !utf8.ValidString(arg) {
			return fmt.Errorf("argument %d is not valid UTF-8: %q", n+1, arg)
		}
	}
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OWNBUCKET_") && !utf8.ValidString(value) {
			return fmt.Errorf("the environment variable %s is not valid UTF-8", name)
		}
	}
	return nil
}

// complain prints an error, if any, and gives the exit code.
func complain(err error) int {
	if err == nil {
		return exitDone
	}
	var lines lineErrors
	if errors.As(err, &lines) {
		fmt.Fprintln(os.Stderr, lines.Error())
		return exitFailed
	}
	fmt.Fprintf(os.Stderr, "ownbucket: %v\n", err)
	var wrong usageError
	if errors.As(err, &wrong) {
		fmt.Fprintln(os.Stderr, `Add --help to a command to see how it is used.`)
		return exitUsage
	}
	return exitFailed
}
