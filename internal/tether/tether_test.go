package tether_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/tether"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, script string) *tether.Process {
	t.Helper()
	process, err := tether.Start(tether.Server{
		Args: []string{"/bin/sh", "-c", script}, Directory: t.TempDir(), StopSignal: "TERM",
	})
	if err != nil {
		t.Fatal(err)
	}
	return process
}

func TestStopWaitsUntilTheServerHasEnded(t *testing.T) {
	t.Parallel()
	stopped := filepath.Join(t.TempDir(), "stopped")
	process := start(t, `trap 'echo yes >`+stopped+`; exit' TERM; echo ready; while :; do sleep 0.01; done`)
	err := process.WaitUntil(time.Minute, func() error {
		if process.Log() == "ready\n" {
			return nil
		}
		return errors.New("not ready")
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stopped); err != nil {
		t.Errorf("the server did not stop in order: %v", err)
	}
}

func TestAServerThatEndsByItselfIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	process := start(t, `echo "port is taken" >&2; exit 1`)
	err := process.WaitUntil(time.Minute, func() error { return errors.New("connection refused") })
	if !errors.Is(err, tether.ErrEnded) || !strings.Contains(err.Error(), "port is taken") {
		t.Errorf("error is %v", err)
	}
	if err := process.Stop(); err != nil {
		t.Error(err)
	}
}

func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	process := start(t, `exec sleep 600`)
	err := process.WaitUntil(30*time.Millisecond, func() error { return errors.New("connection refused") })
	if err == nil || !strings.Contains(err.Error(), "isn't ready") {
		t.Errorf("error is %v", err)
	}
	if err := process.Stop(); err != nil {
		t.Error(err)
	}
}

func TestAServerThatRespawnsIsRestarted(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	stopped := filepath.Join(directory, "stopped")
	process, err := tether.Start(tether.Server{
		Args:      []string{"/bin/sh", "-c", `trap 'echo yes >` + stopped + `; exit' TERM; echo ready; while :; do sleep 0.01; done`},
		Directory: directory, StopSignal: "TERM", Respawn: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for starts := range 3 {
		if starts > 0 {
			if err := process.Restart(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		if err := process.WaitUntil(time.Minute, func() error {
			if said := strings.Count(process.Log(), "ready"); said != starts+1 {
				return fmt.Errorf("ready %d times", said)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if err := process.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stopped); err != nil {
		t.Errorf("the server did not stop in order: %v", err)
	}
}
