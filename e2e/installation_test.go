package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// region is where all buckets stand.
const region = "us-east-1"

// installation is one Ownbucket as it is deployed: a database, an environment,
// and commands run as processes of their own.
type installation struct {
	t       testing.TB
	program string
	env     []string
	secrets []string
	logs    string
	started atomic.Int64
}

// clouds say where AWS is, and who we are there.
type clouds struct {
	S3, STS     string
	Credentials awslocal.Credentials
}

// install migrates an empty database with the program itself.
func install(t testing.TB, database, fileRoot string, at clouds, settings ...string) *installation {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	i := &installation{t: t, program: path, logs: t.TempDir(), secrets: []string{at.Credentials.SecretAccessKey}}
	// Nothing of the developer's own environment but where programs are.
	i.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + t.TempDir(),
		"AWS_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL_S3=" + at.S3, "AWS_ENDPOINT_URL_STS=" + at.STS,
		"AWS_ACCESS_KEY_ID=" + at.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + at.Credentials.SecretAccessKey,
		"OWNBUCKET_DATABASE_URL=" + database, "OWNBUCKET_FILE_ROOT=" + fileRoot,
	}, settings...)
	t.Cleanup(i.checkLogs)
	i.run("migrate", "up")
	return i
}

// checkLogs looks through all that the program printed for what it must never
// print, and shows it where the test failed.
func (i *installation) checkLogs() {
	files, err := filepath.Glob(filepath.Join(i.logs, "*"))
	if err != nil {
		i.t.Error(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			i.t.Error(err)
		}
		for _, secret := range append(i.secrets, "panic:", "goroutine 1 [") {
			if secret != "" && bytes.Contains(text, []byte(secret)) {
				i.t.Errorf("%s printed a panic or a secret", filepath.Base(file))
			}
		}
		if i.t.Failed() && len(text) > 0 {
			i.t.Logf("%s printed:\n%s", filepath.Base(file), text[max(0, len(text)-4000):])
		}
	}
}

// process is a running command.
type process struct {
	*exec.Cmd
	t      testing.TB
	what   string
	stdout bytes.Buffer
	errors string // the file that standard error goes to
}

// start runs a command that ends with the test at the latest.
func (i *installation) start(stdin io.Reader, args ...string) *process {
	i.t.Helper()
	name := strings.Join(args[:min(2, len(args))], "-") + "-" + strconv.FormatInt(i.started.Add(1), 10)
	p := &process{t: i.t, what: "ownbucket " + strings.Join(args, " "), errors: filepath.Join(i.logs, name)}
	stderr, err := os.Create(p.errors)
	if err != nil {
		i.t.Fatal(err)
	}
	defer stderr.Close()
	p.Cmd = exec.CommandContext(i.t.Context(), i.program, args...)
	p.Env, p.Dir, p.Stdin, p.Stdout, p.Stderr = i.env, i.logs, stdin, &p.stdout, stderr
	p.WaitDelay = time.Second
	if err := p.Start(); err != nil {
		i.t.Fatalf("start %s: %v", p.what, err)
	}
	return p
}

// exit waits for the end of the command, and returns its exit code.
func (p *process) exit() int {
	p.t.Helper()
	err := p.Wait()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		p.t.Fatalf("%s: %v", p.what, err)
	}
	return p.ProcessState.ExitCode()
}

// succeed waits for the end of the command and expects exit code 0.
func (p *process) succeed() {
	p.t.Helper()
	if code := p.exit(); code != 0 {
		said, _ := os.ReadFile(p.errors)
		p.t.Fatalf("%s: exit code %d\n%s", p.what, code, said[max(0, len(said)-4000):])
	}
}

// terminate asks the command to end, as a deployment does.
func (p *process) terminate() {
	p.t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatalf("%s: %v", p.what, err)
	}
}

// run runs a command to its end and returns what it printed.
func (i *installation) run(args ...string) []byte {
	i.t.Helper()
	p := i.start(nil, args...)
	p.succeed()
	return p.stdout.Bytes()
}

// read runs a command that prints JSON.
func (i *installation) read(into any, args ...string) {
	i.t.Helper()
	printed := i.run(append(args, "--output", "json")...)
	if err := json.Unmarshal(printed, into); err != nil {
		i.t.Fatalf("ownbucket %s: %v\n%s", strings.Join(args, " "), err, printed)
	}
}

// work runs workers until nothing is left that would run by itself.
func (i *installation) work(workers int) time.Duration {
	i.t.Helper()
	started := time.Now()
	running := make([]*process, workers)
	for n := range running {
		running[n] = i.start(nil, "worker", "--until-idle", "--timeout", "3m")
	}
	for _, p := range running {
		p.succeed()
	}
	return time.Since(started)
}

// publish publishes events in one transaction, and returns their IDs.
func (i *installation) publish(lines ...line) []string {
	i.t.Helper()
	var input bytes.Buffer
	for _, l := range lines {
		if err := json.NewEncoder(&input).Encode(l); err != nil {
			i.t.Fatal(err)
		}
	}
	p := i.start(&input, "publish", "-", "--output", "json")
	p.succeed()
	var answer struct {
		Published int      `json:"published"`
		EventIDs  []string `json:"event_ids"`
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &answer); err != nil {
		i.t.Fatalf("publish: %v\n%s", err, p.stdout.Bytes())
	}
	if answer.Published != len(lines) || len(answer.EventIDs) != len(lines) {
		i.t.Fatalf("published %d of %d events, with %d IDs", answer.Published, len(lines), len(answer.EventIDs))
	}
	return answer.EventIDs
}

// eventRow is an event as `events list` shows it.
type eventRow struct {
	Sequence     int64  `json:"sequence"`
	EventID      string `json:"event_id"`
	Type         string `json:"type"`
	State        string `json:"state"`
	Outcome      string `json:"outcome"`
	AttemptCount int    `json:"attempt_count"`
	ErrorCode    string `json:"error_code"`
	Error        string `json:"error"`
}

// end is the state, with the outcome or the error's code.
func (e eventRow) end() string {
	switch {
	case e.Outcome != "":
		return e.State + " " + e.Outcome
	case e.ErrorCode != "":
		return e.State + " " + e.ErrorCode
	}
	return e.State
}

func (i *installation) events() []eventRow {
	i.t.Helper()
	var rows []eventRow
	i.read(&rows, "events", "list", "--limit", "0")
	return rows
}

// expectAllDone expects that many events, all of them completed with the
// outcome done.
func (i *installation) expectAllDone(published int) {
	i.t.Helper()
	rows := i.events()
	if len(rows) != published {
		i.t.Errorf("%d events are listed, %d were published", len(rows), published)
	}
	for _, row := range rows {
		if row.end() != "completed done" {
			i.t.Errorf("event %d, %s: %s, %s", row.Sequence, row.Type, row.end(), row.Error)
		}
	}
}

// integrationRow is what `integration show` tells.
type integrationRow struct {
	KeyPrefix     string `json:"key_prefix"`
	State         string `json:"state"`
	BlockedReason string `json:"blocked_reason"`
	WaitingEvents int    `json:"waiting_events"`
	Locked        bool   `json:"locked"`
}

func (i *installation) integration(p *place) integrationRow {
	i.t.Helper()
	var row integrationRow
	i.read(&row, "integration", "show", "--service", p.service, "--environment", p.environment)
	return row
}

// until polls, since another process is what brings it about.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited too long for: %s", what)
		}
	}
}
