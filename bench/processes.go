package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// consumeCommand makes this program a worker alone.
const consumeCommand = "consume"

// runWorkers runs worker processes until the context ends.
func runWorkers(ctx context.Context, url string, workers int, done func(int)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	failed := make([]error, workers)
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() { failed[i] = runWorker(ctx, exec.CommandContext(ctx, self, consumeCommand, url), done) })
	}
	running.Wait()
	return errors.Join(failed...)
}

func runWorker(ctx context.Context, worker *exec.Cmd, done func(int)) error {
	worker.Stderr = os.Stderr
	worker.Cancel = func() error { return worker.Process.Signal(syscall.SIGTERM) }
	worker.WaitDelay = 30 * time.Second
	reports, err := worker.StdoutPipe()
	if err != nil {
		return err
	}
	// It ends with us, however we end.
	if _, err := worker.StdinPipe(); err != nil {
		return err
	}
	if err := worker.Start(); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	lines := bufio.NewScanner(reports)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return fmt.Errorf("a worker reports %q", lines.Text())
		}
		done(n)
	}
	if err := worker.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("a worker ended: %w", err)
	}
	return nil
}

// consumeAlone is the worker process: it reports on standard output how many
// events it has completed, until SIGTERM or its standard input's end.
func consumeAlone(ctx context.Context, url string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return consumeOutbox(ctx, url, twenty.handle, func(n int) { fmt.Println(n) })
}
