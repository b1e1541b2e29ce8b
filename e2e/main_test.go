// Package e2e_test drives the real program, as operators and the CMS do: the
// binary ownbucket, on a real database, against AWS stand-ins.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// directory holds the program for as long as the tests run.
var directory string

func TestMain(m *testing.M) {
	var err error
	if directory, err = os.MkdirTemp("", "ownbucket-e2e"); err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the program:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(directory); err != nil {
		fmt.Fprintln(os.Stderr, "remove the program:", err)
	}
	os.Exit(code)
}

// program is the one that OWNBUCKET_TEST_PROGRAM names, or built by the first
// test that runs it: without the race detector, as it is shipped.
var program = sync.OnceValues(func() (string, error) {
	if built := os.Getenv("OWNBUCKET_TEST_PROGRAM"); built != "" {
		return built, nil
	}
	path := filepath.Join(directory, "ownbucket")
	build := exec.CommandContext(context.Background(), "go", "build", "-o", path, "../cmd/ownbucket")
	if output, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build ownbucket: %w", err), errors.New(string(output)))
	}
	return path, nil
})

// long marks a test that takes more than a few seconds.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long")
	}
}
