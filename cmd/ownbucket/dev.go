package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/table"
)

type devCommand struct {
	Once bool   `help:"Exit when everything was shown: with 0 if all is as it should be."`
	Dir  string `help:"Keep the database and the files here (default: a temporary directory)." placeholder:"DIR"`
}

// Help says what it is.
func (devCommand) Help() string {
	return `Starts stand-ins for S3, STS and CloudFront on loopback, publishes a sample of all five events with real files, and
shows what happened in the bucket. It runs until Ctrl-C, or with --once ends by itself. The stand-ins are in a binary of
their own, ownbucket-dev, beside this one.`
}

// Run hands over to the binary that carries the stand-ins: the production
// binary doesn't.
func (c *devCommand) Run(_ context.Context, e *environment) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find ownbucket-dev: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), "ownbucket-dev")
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("ownbucket-dev"); err != nil {
			return errors.New("ownbucket-dev isn't beside this program: build it with `make build` or `go build ./cmd/ownbucket-dev`")
		}
	}
	args := []string{"ownbucket-dev"}
	if c.Once {
		args = append(args, "--once")
	}
	if c.Dir != "" {
		args = append(args, "--dir", c.Dir)
	}
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

type versionCommand struct{}

func (versionCommand) Run(e *environment) error {
	return e.print(map[string]string{"version": version()}, func(t table.Writer) {
		t.AppendRow(table.Row{"ownbucket " + version()})
	})
}
