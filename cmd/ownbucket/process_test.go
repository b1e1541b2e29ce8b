package main_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// start starts a worker and returns once it says that it works. The function
// waits for its end and returns its exit code.
func (s *shell) start(signals ...syscall.Signal) (worker *exec.Cmd, wait func() int) {
	s.t.Helper()
	worker = exec.CommandContext(s.t.Context(), binary, "worker", "--log-level", "info")
	worker.Env, worker.Dir = s.env, s.root
	stderr, err := worker.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := worker.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, "worker started") {
			break
		}
		if err != nil {
			s.t.Fatalf("the worker ended before it began: %v", err)
		}
	}
	for _, signal := range signals {
		if err := worker.Process.Signal(signal); err != nil {
			s.t.Fatal(err)
		}
	}
	return worker, func() int {
		s.t.Helper()
		_, _ = io.Copy(io.Discard, lines)
		err := worker.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			s.t.Fatal(err)
		}
		return worker.ProcessState.ExitCode()
	}
}

func TestSignalDrainsTheWorkerWhichThenExitsWithZero(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			s := newShell(t, dbtest.SQLiteURL(t))
			if _, wait := s.start(signal); wait() != 0 {
				t.Error("the worker did not exit with 0")
			}
		})
	}
}

func TestSecondSignalEndsADrainingWorkerAtOnce(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	s.setIntegration()
	s.file("source", "content")
	reached := make(chan struct{})
	s.aws.Inject(awslocal.Rule{API: "s3:PutObject", Hang: true, Times: 1,
		Match: func(awslocal.Call) bool { close(reached); return true }})
	s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"))
	worker, wait := s.start()
	<-reached
	if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Only once the first was seen does the next one end it: signals of one kind
	// that come together are one.
	ended := make(chan int, 1)
	go func() { ended <- wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case code := <-ended:
			if code == 0 {
				t.Error("the worker claims that it has drained")
			}
			return
		case <-tick.C:
			_ = worker.Process.Signal(syscall.SIGTERM)
		case <-t.Context().Done():
			t.Fatal("the worker went on draining")
		}
	}
}

func TestASignalEndsPublishWhileItWaitsForItsInput(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	publishing := exec.CommandContext(ctx, binary, "publish")
	publishing.Env, publishing.Dir = s.env, s.root
	var stderr strings.Builder
	publishing.Stderr = &stderr
	stdin, err := publishing.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := publishing.Start(); err != nil {
		t.Fatal(err)
	}
	// More than a pipe holds: once it is written, the program reads.
	if _, err := stdin.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := publishing.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = publishing.Wait() // the exit code tells
	if code := publishing.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "nothing was published") {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
}

func TestUntilIdleFailsWhenItsTimeIsUp(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	s.env = append(s.env, "OWNBUCKET_GRACE_PERIOD=10ms")
	s.setIntegration()
	s.file("source", "content")
	s.aws.Inject(awslocal.Rule{API: "s3:PutObject", Hang: true})
	s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"))
	r := s.run("", "worker", "--until-idle", "--timeout", "300ms")
	if r.code != 1 || !strings.Contains(r.stderr, "not idle in time") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
}

func TestSecondWorkerOnSQLiteExitsWithOne(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	first, wait := s.start()
	r := s.run("", "worker", "--until-idle")
	if r.code != 1 || !strings.Contains(r.stderr, "another worker") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait()
}

func TestPostgreSQLIsMigratedByMigrateAlone(t *testing.T) {
	t.Parallel()
	s := newShell(t, pgtest.URL(t))
	for _, args := range [][]string{{"events", "list"}, {"stats"}, {"worker", "--until-idle"},
		{"integration", "list"}, {"migrate", "grant-publisher", "cms"}} {
		if r := s.run("", args...); r.code != 1 || !strings.Contains(r.stderr, "ownbucket migrate up") {
			t.Errorf("%v without tables: exit code %d, stderr %q", args, r.code, r.stderr)
		}
	}
	pending := s.list("migrate", "status")
	if len(pending) == 0 || pending[0]["applied"] != false {
		t.Errorf("status before: %v", pending)
	}
	if applied := s.list("migrate", "up"); len(applied) != len(pending) {
		t.Errorf("applied %v of %v", applied, pending)
	}
	if applied := s.list("migrate", "up"); len(applied) != 0 {
		t.Errorf("applied again: %v", applied)
	}
	for _, step := range s.list("migrate", "status") {
		if step["applied"] != true {
			t.Errorf("status after: %v", step)
		}
	}
	if r := s.run("", "migrate", "grant-publisher", "nobody"); r.code != 1 || !strings.Contains(r.stderr, "CREATE ROLE") {
		t.Errorf("granting to a role that doesn't exist: exit code %d, stderr %q", r.code, r.stderr)
	}
}

func TestWithoutADatabaseURLItIsSQLiteInTheWorkingDirectory(t *testing.T) {
	t.Parallel()
	s := newShell(t, "")
	s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"))
	r := s.run("", "stats", "--output", "json", "--database-url", "sqlite:"+filepath.Join(s.root, "ownbucket.db"))
	if r.code != 0 || !strings.Contains(r.stdout, `"available": 1`) {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

func TestSettingsComeFromTheEnvironmentAndFlagsWin(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	s.env = append(s.env, "OWNBUCKET_OUTPUT=json", "OWNBUCKET_STAGING_BUCKETS=", "OWNBUCKET_CONCURRENCY=",
		"OWNBUCKET_S3_PATH_STYLE=true", "OWNBUCKET_SOURCE_ALLOW_CIDRS=127.0.0.0/8,::1/128", "OWNBUCKET_MAX_UPLOAD=200MB")
	if got := strings.TrimSpace(s.ok("events", "list")); got != "[]" {
		t.Errorf("OWNBUCKET_OUTPUT=json printed %q", got)
	}
	if got := s.ok("events", "list", "--output", "table"); !strings.Contains(got, "SEQUENCE") {
		t.Errorf("--output table printed %q", got)
	}
	s.ok("worker", "--until-idle", "--timeout", "1m")
	for _, wrong := range []string{"CONCURRENCY=0", "LEASE_DURATION=soon", "RETRY_ATTEMPTS=-1", "MAX_UPLOAD=6GiB", "SOURCE_PORTS=https", "SOURCE_PORTS=70000", "SOURCE_MIN_RATE=0", "MAX_EVENT_SIZE=1KiB", "MAX_EVENT_SIZE=1GiB", "SOURCE_MIN_RATE=fast", "SPOOL_LIMIT=399MB", "SPOOL_LIMIT=large", "BRAND=\xff",
		"S3_PATH_STYLE=maybe", "SOURCE_ALLOW_CIDRS=localhost", "LOG_LEVEL=loud", "OUTPUT=xml"} {
		broken := *s
		broken.env = append(broken.env[:len(broken.env):len(broken.env)], "OWNBUCKET_"+wrong)
		if r := broken.run("", "worker", "--until-idle"); r.code != 2 || r.stderr == "" {
			t.Errorf("OWNBUCKET_%s: exit code %d, stderr %q", wrong, r.code, r.stderr)
		}
	}
}

func TestAWorkerRefusesAFileRootThatHoldsItsDatabase(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLiteURL(t)
	s := newShell(t, url)
	s.setIntegration()
	s.publish(`{"type":"MediaUploaded","service_id":"S1","data":{"media_id":"m1","file_name":"a.db",` +
		`"content_type":"text/plain","source":"file:ownbucket.db","version":"2026-01-02T03:04:05Z"}}`)
	s.env = append(s.env, "OWNBUCKET_FILE_ROOT="+filepath.Dir(strings.TrimPrefix(url, "sqlite:")))
	r := s.run("", "worker", "--until-idle", "--timeout", "1m")
	if r.code != 1 || !strings.Contains(r.stderr, "OWNBUCKET_FILE_ROOT") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	if keys := s.aws.Keys(bucketName); len(keys) != 0 {
		t.Errorf("the bucket has %v", keys)
	}
}
