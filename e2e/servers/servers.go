// Package servers starts AWS stand-ins that others wrote, one process per
// test on a loopback port of its own. They are independent judges of what
// our own stand-in, internal/awslocal, would forgive or get wrong.
package servers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/tether"
)

// Region is where all the servers pretend to be.
const Region = "us-east-1"

// patience is how long a server may take to start on a busy machine.
const patience = time.Minute

// Server is a running stand-in.
type Server struct {
	// Endpoint is the URL for S3, and for moto of every other service.
	Endpoint string
	// IAMEndpoint is the URL for IAM.
	IAMEndpoint string
	// Root may do everything.
	Root aws.Credentials
}

// S3 is a client with these credentials.
func (s *Server) S3(who aws.Credentials) *s3.Client {
	return s3.New(s3.Options{
		Region:       Region,
		BaseEndpoint: aws.String(s.Endpoint),
		UsePathStyle: true,
		Credentials:  credentials.StaticCredentialsProvider{Value: who},
	})
}

// CreateBucket makes an empty bucket that Root owns.
func (s *Server) CreateBucket(t testing.TB, name string) {
	t.Helper()
	if _, err := s.S3(s.Root).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create bucket %s: %v", name, err)
	}
}

// CreateUser makes an IAM user who may do what the policy, in JSON, allows.
func (s *Server) CreateUser(t testing.TB, name, policy string) aws.Credentials {
	t.Helper()
	s.iam(t, "CreateUser", url.Values{"UserName": {name}}, nil)
	s.iam(t, "PutUserPolicy", url.Values{
		"UserName": {name}, "PolicyName": {"test"}, "PolicyDocument": {policy},
	}, nil)
	var answer struct {
		AccessKeyID string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
		Secret      string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
	}
	s.iam(t, "CreateAccessKey", url.Values{"UserName": {name}}, &answer)
	return aws.Credentials{AccessKeyID: answer.AccessKeyID, SecretAccessKey: answer.Secret}
}

// iam makes one call of IAM's query API as Root.
func (s *Server) iam(t testing.TB, action string, parameters url.Values, answer any) {
	t.Helper()
	parameters.Set("Action", action)
	parameters.Set("Version", "2010-05-08")
	body := parameters.Encode()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.IAMEndpoint+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	hash := sha256.Sum256([]byte(body))
	err = v4.NewSigner().SignHTTP(t.Context(), s.Root, request, hex.EncodeToString(hash[:]), "iam", Region, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("IAM %s: %v", action, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("IAM %s: %s, %v\n%s", action, response.Status, err, text)
	}
	if answer == nil {
		return
	}
	if err := xml.Unmarshal(text, answer); err != nil {
		t.Fatalf("IAM %s: %v\n%s", action, err, text)
	}
}

// run starts a server that ends with the test. The arguments are made for
// an address that was free a moment ago; should another process have taken
// it since, another is tried.
func run(t testing.TB, env []string, arguments func(address string) []string) (address string) {
	t.Helper()
	const tries = 3
	for try := 1; ; try++ {
		address := freeAddress(t)
		process, err := tether.Start(tether.Server{
			Args: arguments(address), Env: env, Directory: t.TempDir(), StopSignal: "TERM",
		})
		if err != nil {
			t.Fatal(err)
		}
		err = process.WaitUntil(patience, func() error { return answers(t.Context(), address) })
		if err == nil {
			t.Cleanup(func() {
				if err := process.Stop(); err != nil {
					t.Errorf("stop %s: %v", arguments(address)[0], err)
				}
				if t.Failed() {
					t.Logf("%s printed:\n%s", filepath.Base(arguments(address)[0]), process.Log())
				}
			})
			return address
		}
		_ = process.Stop()
		if try == tries || !errors.Is(err, tether.ErrEnded) {
			t.Fatalf("start %s: %v", filepath.Base(arguments(address)[0]), err)
		}
	}
}

// oneAnswer follows no redirect: versitygw's IAM sends browsers to its
// makers' pages.
var oneAnswer = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// answers tells whether HTTP is spoken there; any status will do.
func answers(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	response, err := oneAnswer.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// program finds what `make deps` installs, or what the variable names.
func program(t testing.TB, variable, installed string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(repository(), ".cache", installed)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make deps, or name the program in %s", err, variable)
	}
	return path
}

// repository is the root of this source tree.
func repository() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("servers: no caller information")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// environment is PATH and a home of the server's own: nothing of the
// developer's configuration or credentials reaches it.
func environment(t testing.TB, variables ...string) []string {
	t.Helper()
	home := fmt.Sprintf("HOME=%s", t.TempDir())
	return append([]string{"PATH=" + os.Getenv("PATH"), home}, variables...)
}
