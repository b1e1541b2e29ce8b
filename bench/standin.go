package main

import (
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// standInCommand makes this program AWS's stand-in until its standard input
// ends.
const standInCommand = "stand-in"

const region = "ap-northeast-1"

// inAWS is how long AWS takes for a small S3 call within a region.
const inAWS = 20 * time.Millisecond

// standIn is AWS's stand-in in a process of its own: its work isn't done in
// the process of those who are measured.
type standIn struct {
	calls *rpc.Client
	pid   int
	Identity
}

// Identity is where the stand-in is, and who we are there.
type Identity struct {
	Endpoint    string
	Credentials awslocal.Credentials
}

// startStandIn starts one that ends with the scenario.
func startStandIn(e *environment) (*standIn, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	process := exec.Command(program, standInCommand)
	process.Stderr = os.Stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	if err := process.Start(); err != nil {
		return nil, fmt.Errorf("start the stand-in: %w", err)
	}
	s := &standIn{calls: jsonrpc.NewClient(pipes{stdout, stdin}), pid: process.Process.Pid}
	e.cleanUp(func() error { return errors.Join(s.calls.Close(), process.Wait()) })
	return s, s.call("Introduce", 0, &s.Identity)
}

func (s *standIn) call(method string, argument, answer any) error {
	if err := s.calls.Call("StandIn."+method, argument, answer); err != nil {
		return fmt.Errorf("ask the stand-in to %s: %w", method, err)
	}
	return nil
}

// behave says how S3 answers from now on: how long each call takes, and in
// which buckets none is ever answered.
func (s *standIn) behave(delay time.Duration, hang ...string) error {
	return s.call("Behave", Behaviour{delay, hang}, new(bool))
}

// counts is how often each API was called so far.
func (s *standIn) counts() (map[string]int, error) {
	counts := make(map[string]int)
	return counts, s.call("Counts", 0, &counts)
}

// config is the SDK's for this stand-in.
func (i Identity) config() aws.Config {
	return aws.Config{
		Region:       region,
		Credentials:  credentials.NewStaticCredentialsProvider(i.Credentials.AccessKeyID, i.Credentials.SecretAccessKey, ""),
		BaseEndpoint: &i.Endpoint,
	}
}

// pipes are both ends of a process's standard input and output.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Read(b []byte) (int, error)  { return p.ReadCloser.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.WriteCloser.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.WriteCloser.Close(), p.ReadCloser.Close()) }

// beStandIn is the other process.
func beStandIn() error {
	signal.Ignore(os.Interrupt) // it ends with who started it
	server, err := awslocal.Start(awslocal.Config{})
	if err != nil {
		return err
	}
	defer server.Close()
	ours, err := server.AddUser(awslocal.User{Name: "ownbucket",
		Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}]}`})
	if err != nil {
		return err
	}
	serving := rpc.NewServer()
	if err := serving.Register(&StandIn{server: server, identity: Identity{server.Endpoint(), ours}}); err != nil {
		return err
	}
	serving.ServeCodec(jsonrpc.NewServerCodec(pipes{os.Stdin, os.Stdout}))
	return nil
}

// StandIn is what the other process does when asked; its methods are those of
// net/rpc.
type StandIn struct {
	server   *awslocal.Server
	identity Identity
}

// Behaviour is how S3 answers.
type Behaviour struct {
	Delay time.Duration
	Hang  []string // buckets
}

// Introduce says who it is.
func (s *StandIn) Introduce(_ int, to *Identity) error {
	*to = s.identity
	return nil
}

// AddCustomers makes buckets of those names, and the roles that may use them.
func (s *StandIn) AddCustomers(buckets []string, made *[]awslocal.Customer) error {
	for _, name := range buckets {
		one, err := s.server.AddCustomer(awslocal.Customer{Bucket: name, Region: region, Prefix: "media"})
		if err != nil {
			return err
		}
		*made = append(*made, one)
	}
	return nil
}

// Behave replaces how it behaved before; calls that hang are cut off.
func (s *StandIn) Behave(b Behaviour, _ *bool) error {
	s.server.ClearFaults()
	for _, bucket := range b.Hang { // first: the first rule that takes a call decides
		s.server.Inject(awslocal.Rule{API: "s3:*", Bucket: bucket, Hang: true})
	}
	if b.Delay > 0 {
		s.server.Inject(awslocal.Rule{API: "s3:*", Delay: b.Delay})
	}
	return nil
}

// Counts is how often each API was called.
func (s *StandIn) Counts(_ int, counts *map[string]int) error {
	*counts = s.server.Counts()
	return nil
}

// startSite starts a stand-in, and makes a file root with one file of that size
// to upload from.
func startSite(e *environment, size int64) (aws *standIn, root string, err error) {
	if aws, err = startStandIn(e); err != nil {
		return nil, "", err
	}
	root, err = fileRoot(e, size)
	return aws, root, err
}

// fileRoot makes a directory that holds one file of that size, named source.
func fileRoot(e *environment, size int64) (root string, err error) {
	root, err = os.MkdirTemp("", "bench")
	if err != nil {
		return "", fmt.Errorf("make a file root: %w", err)
	}
	e.cleanUp(func() error { return os.RemoveAll(root) })
	file, err := os.Create(root + "/" + source)
	if err != nil {
		return "", fmt.Errorf("make a source: %w", err)
	}
	return root, errors.Join(file.Truncate(size), file.Close())
}

const source = "source.png"
