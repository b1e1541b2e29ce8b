package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// binary is the program, built once for all tests.
var binary string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ownbucket-cli-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "ownbucket")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// shell runs the program on one database, with a customer's account to work in.
type shell struct {
	t    *testing.T
	aws  *awslocal.Server
	role string
	root string
	env  []string
}

const (
	bucketName = "alpha-prod-assets"
	region     = "ap-northeast-1"
	externalID = "external-id-1"
)

func newShell(t *testing.T, url string) *shell {
	t.Helper()
	server, err := awslocal.Start(awslocal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	ours, err := server.AddUser(awslocal.User{Name: "ownbucket"})
	if err != nil {
		t.Fatal(err)
	}
	customer, err := server.AddCustomer(awslocal.Customer{Bucket: bucketName, Region: region, Prefix: "media",
		ExternalID: externalID, Options: awslocal.BucketOptions{Region: region}})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	return &shell{t: t, aws: server, role: customer.RoleARN, root: root, env: append(os.Environ(),
		"OWNBUCKET_DATABASE_URL="+url, "OWNBUCKET_FILE_ROOT="+root, "OWNBUCKET_RETRY_BASE=1ms",
		"OWNBUCKET_POLL_INTERVAL=5ms", "OWNBUCKET_LOG_LEVEL=error", "AWS_REGION="+region,
		"AWS_ACCESS_KEY_ID="+ours.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+ours.SecretAccessKey,
		"AWS_ENDPOINT_URL_S3="+server.Endpoint(), "AWS_ENDPOINT_URL_STS="+server.Endpoint(), "AWS_EC2_METADATA_DISABLED=true")}
}

type result struct {
	code           int
	stdout, stderr string
}

func (s *shell) run(stdin string, args ...string) result {
	s.t.Helper()
	command := exec.CommandContext(s.t.Context(), binary, args...)
	command.Stdin = strings.NewReader(stdin)
	return s.finish(command)
}

func (s *shell) finish(command *exec.Cmd) result {
	s.t.Helper()
	command.Env, command.Dir = s.env, s.root
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// measured publishes a file, by its name or as standard input, and tells the most
// memory that it took, in bytes.
func (s *shell) measured(path string, standardInput bool) (result, int64) {
	s.t.Helper()
	command := exec.CommandContext(s.t.Context(), binary, "publish", path)
	if standardInput {
		file, err := os.Open(path)
		if err != nil {
			s.t.Fatal(err)
		}
		defer file.Close()
		command = exec.CommandContext(s.t.Context(), binary, "publish")
		command.Stdin = file
	}
	r := s.finish(command)
	usage, _ := command.ProcessState.SysUsage().(*syscall.Rusage)
	return r, usage.Maxrss << 10
}

// ok runs a command that must end well.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	r := s.run("", args...)
	if r.code != 0 {
		s.t.Fatalf("ownbucket %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// object and list run a command that must print JSON.
func (s *shell) object(args ...string) map[string]any {
	s.t.Helper()
	return decode[map[string]any](s.t, s.ok(append(args, "--output", "json")...))
}

func (s *shell) list(args ...string) []map[string]any {
	s.t.Helper()
	return decode[[]map[string]any](s.t, s.ok(append(args, "--output", "json")...))
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var value T
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("no JSON: %v\n%s", err, text)
	}
	return value
}

// publish publishes lines and returns the answer.
func (s *shell) publish(lines ...string) map[string]any {
	s.t.Helper()
	r := s.run(strings.Join(lines, "\n"), "publish", "-", "--output", "json")
	if r.code != 0 {
		s.t.Fatalf("publish: %s", r.stderr)
	}
	return decode[map[string]any](s.t, r.stdout)
}

func (s *shell) file(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.root, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shell) setIntegration(more ...string) {
	s.t.Helper()
	s.ok(append([]string{"integration", "set", "--service", "S1", "--bucket", bucketName, "--region", region,
		"--role-arn", s.role, "--external-id", externalID, "--prefix", "media", "--skip-test", "--reason", "test"}, more...)...)
}

func upload(media, name, version string) string {
	return fmt.Sprintf(`{"type":"MediaUploaded","service_id":"S1","data":{"media_id":%q,"file_name":%q,`+
		`"content_type":"text/plain","source":"file:source","version":%q}}`, media, name, version)
}
