package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// devCommand hands over to a binary of its own, so that the stand-in for AWS
// is in no production program.
type devCommand struct {
	Once bool   `help:"End when everything was shown: with 0 if all is as it should be, with 1 if not."`
	Dir  string `placeholder:"DIRECTORY" help:"Keep the database and the files here. Default: a temporary directory."`
}

const devProgram = "ownbucket-dev"

func (devCommand) Help() string {
	return `Starts stand-ins for S3, STS and CloudFront on loopback, publishes a sample of all five events with real files, and
shows what happened in the bucket. Then it goes on until Ctrl-C, unless --once was said.

Examples:
  ownbucket dev
  ownbucket dev --once`
}

func (c devCommand) Run() error {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", devProgram, err)
	}
	program := filepath.Join(filepath.Dir(self), devProgram)
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: the demonstration is a program of its own, which `make build` builds "+
			"beside this one", program)
	}
	args := []string{devProgram}
	if c.Once {
		args = append(args, "--once")
	}
	if c.Dir != "" {
		args = append(args, "--dir="+c.Dir)
	}
	// Exec returns only if it failed.
	return fmt.Errorf("start %s: %w", program, syscall.Exec(program, args, os.Environ()))
}
