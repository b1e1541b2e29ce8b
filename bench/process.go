package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// workerProcess is `ownbucket worker` as it is deployed.
type workerProcess struct {
	*exec.Cmd
	ended chan error
}

// startWorker builds the program and starts it; what is left of it ends with
// the scenario.
func (i *installation) startWorker(ctx context.Context, e *environment, flags ...string) (*workerProcess, error) {
	directory, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	e.cleanUp(func() error { return os.RemoveAll(directory) })
	program := filepath.Join(directory, "ownbucket")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/ownbucket")
	build.Dir = ".."
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the program (run the benchmarks in bench/): %w\n%s", err, output)
	}
	p := &workerProcess{Cmd: exec.CommandContext(ctx, program, append([]string{"worker"}, flags...)...), ended: make(chan error, 1)}
	p.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + directory, "TMPDIR=" + directory,
		"AWS_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL_S3=" + i.aws.Endpoint, "AWS_ENDPOINT_URL_STS=" + i.aws.Endpoint,
		"AWS_ACCESS_KEY_ID=" + i.aws.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + i.aws.Credentials.SecretAccessKey,
		"OWNBUCKET_DATABASE_URL=" + i.url, "OWNBUCKET_FILE_ROOT=" + i.root, "OWNBUCKET_LOG_LEVEL=error",
	}
	p.Stderr = os.Stderr
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		p.ended <- p.Wait()
		close(exited)
	}()
	e.cleanUp(func() error {
		_ = p.Process.Kill() // unless it has ended
		<-exited
		return nil
	})
	return p, nil
}

// peakUntilExit is the most memory, in MiB, that the process had. What it took
// in its last milliseconds is missed.
func (p *workerProcess) peakUntilExit() (float64, error) {
	const often = 10 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	most := 0.0
	for {
		select {
		case err := <-p.ended:
			if err != nil {
				return 0, fmt.Errorf("the worker: %w", err)
			}
			return most, nil
		case <-tick.C:
		}
		if now, err := peak(p.Process.Pid); err == nil {
			most = now
		}
	}
}

// peakAfter is the most memory, in MiB, that the process had by then. It is
// then told to stop.
func (p *workerProcess) peakAfter(ctx context.Context, during time.Duration) (float64, error) {
	timer := time.NewTimer(during)
	defer timer.Stop()
	select {
	case err := <-p.ended:
		return 0, fmt.Errorf("the worker ended early: %w", err)
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-timer.C:
	}
	most, err := peak(p.Process.Pid)
	if err != nil {
		return 0, err
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, fmt.Errorf("stop the worker: %w", err)
	}
	if err := <-p.ended; err != nil {
		return 0, fmt.Errorf("stop the worker: %w", err)
	}
	return most, nil
}
