// Package stage sets up a whole installation for tests: a database, the AWS
// stand-in, a customer, a file root, and a worker to run. What it does goes
// through the public ways in: events are published, workers consume them.
package stage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/worker"
)

// Region is where everything stands.
const Region = "ap-northeast-1"

// Stage is one installation.
type Stage struct {
	T        testing.TB
	DB       *database.DB
	AWS      *awslocal.Server
	Settings *integration.Store
	Root     string
	// Config is what workers run with; change it before Start or Work.
	Config worker.Config

	versions atomic.Int64
	files    atomic.Int64
}

// New sets up everything but a customer.
func New(t testing.TB, db *database.DB) *Stage {
	t.Helper()
	server, err := awslocal.Start(awslocal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	ours, err := server.AddUser(awslocal.User{Name: "ownbucket", Policy: assumeAnyRole})
	if err != nil {
		t.Fatal(err)
	}
	s := &Stage{T: t, DB: db, AWS: server, Settings: integration.New(db), Root: t.TempDir()}
	s.versions.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	s.Config = worker.Config{
		DB: db, Name: "test", LeaseDuration: 10 * time.Second, Poll: 5 * time.Millisecond, Grace: 5 * time.Second,
		RetryBase: time.Millisecond, RetryAttempts: 4, FileRoot: s.Root, SpoolDir: t.TempDir(),
		AWS:    AWSConfig(server, ours),
		Logger: Logger(t),
	}
	return s
}

const assumeAnyRole = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}]}`

// AWSConfig is a configuration of the SDK for the stand-in.
func AWSConfig(server *awslocal.Server, c awslocal.Credentials) aws.Config {
	return aws.Config{
		Region:       Region,
		Credentials:  credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		BaseEndpoint: aws.String(server.Endpoint()),
	}
}

// Logger logs into the test.
func Logger(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct {
	mu     sync.Mutex
	t      testing.TB
	closed bool
}

func (w *testWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.t.Logf("%s", line)
	}
	return len(line), nil
}

func (w *testWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Place is an environment of a service, and where its media go.
type Place struct {
	*Stage
	Service, Environment string
	Bucket, Prefix       string
	Role                 string
}

// Customer makes a customer's account with a bucket, and production's settings.
func (s *Stage) Customer(service, bucket, prefix string) *Place {
	s.T.Helper()
	made, err := s.AWS.AddCustomer(awslocal.Customer{Bucket: bucket, Region: Region, Prefix: prefix,
		Options: awslocal.BucketOptions{Region: Region}})
	if err != nil {
		s.T.Fatal(err)
	}
	p := &Place{Stage: s, Service: service, Bucket: bucket, Prefix: prefix, Role: made.RoleARN}
	p.Set(integration.Change{Bucket: &bucket, Region: ref(Region), RoleARN: &made.RoleARN,
		ExternalID: &made.ExternalID, Prefix: &prefix})
	return p
}

// Set changes the settings of the place.
func (p *Place) Set(change integration.Change) {
	p.T.Helper()
	change.ServiceID, change.EnvironmentID = p.Service, p.Environment
	change.SkipTest, change.Reason, change.Actor = true, "test", "test"
	if _, err := p.Settings.Set(p.T.Context(), change); err != nil {
		p.T.Fatal(err)
	}
}

// Neighbour is another service that stores in the place's bucket, through a role
// and an external ID of its own.
func (p *Place) Neighbour(service string) *Place {
	p.T.Helper()
	other := *p
	other.Service, other.Role = service, p.Role+"-of-neighbour"
	role := awslocal.Role{ARN: other.Role, ExternalID: "external-id-of-" + p.Bucket,
		Policy: awslocal.CustomerPolicy(p.Bucket, p.Prefix), TrustPrincipal: "arn:aws:iam::999999999999:root"}
	if err := p.AWS.SetRole(role); err != nil {
		p.T.Fatal(err)
	}
	other.Set(integration.Change{Bucket: &p.Bucket, Region: ref(Region), RoleARN: &role.ARN,
		ExternalID: &role.ExternalID, Prefix: &p.Prefix})
	return &other
}

// In is another environment of the same service.
func (p *Place) In(environment string) *Place {
	other := *p
	other.Environment = environment
	return &other
}

// Integration reads the place's settings.
func (p *Place) Integration() integration.Integration {
	p.T.Helper()
	found, err := p.Settings.Show(p.T.Context(), p.Service, p.Environment)
	if err != nil {
		p.T.Fatal(err)
	}
	return found
}

// KeyPrefix is what the keys of the place begin with.
func (p *Place) KeyPrefix() string { return p.Integration().KeyPrefix() }

// Version is a new version, a second above the last.
func (s *Stage) Version() events.Version {
	return events.NewVersion(time.UnixMicro(s.versions.Add(time.Second.Microseconds())))
}

// File puts content below the file root and returns its source.
func (s *Stage) File(content string) string {
	s.T.Helper()
	name := fmt.Sprintf("file-%d", s.files.Add(1))
	if err := os.WriteFile(filepath.Join(s.Root, name), []byte(content), 0o600); err != nil {
		s.T.Fatal(err)
	}
	return "file:" + name
}

// RemoveFile takes a source away.
func (s *Stage) RemoveFile(source string) {
	s.T.Helper()
	if err := os.Remove(filepath.Join(s.Root, source[len("file:"):])); err != nil {
		s.T.Fatal(err)
	}
}

// PutFile makes a source have that content.
func (s *Stage) PutFile(source, content string) {
	s.T.Helper()
	if err := os.WriteFile(filepath.Join(s.Root, source[len("file:"):]), []byte(content), 0o600); err != nil {
		s.T.Fatal(err)
	}
}

// Upload makes a MediaUploaded of that content.
func (s *Stage) Upload(media, name, content string) events.MediaUploaded {
	sum := sha256.Sum256([]byte(content))
	size := int64(len(content))
	return events.MediaUploaded{MediaID: media, FileName: name, ContentType: "text/plain", Size: &size,
		ChecksumSHA256: hex.EncodeToString(sum[:]), Source: s.File(content), Version: s.Version()}
}

// Rename makes a MediaRenamed.
func (s *Stage) Rename(media, from, to string) events.MediaRenamed {
	return events.MediaRenamed{MediaID: media, From: from, To: to, Version: s.Version()}
}

// Delete makes a MediaDeleted.
func (s *Stage) Delete(media, name string) events.MediaDeleted {
	return events.MediaDeleted{MediaID: media, FileName: name, Version: s.Version()}
}

// Publish publishes events of the place in one transaction; it returns the ID
// of the last.
func (p *Place) Publish(list ...events.Event) string {
	p.T.Helper()
	tx, err := p.DB.BeginTxx(p.T.Context(), nil)
	if err != nil {
		p.T.Fatal(err)
	}
	dialect := events.PostgreSQL
	if p.DB.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: dialect, Schema: p.DB.Schema})
	if err != nil {
		p.T.Fatal(err)
	}
	envelopes := make([]events.Envelope, len(list))
	for i, e := range list {
		envelopes[i] = events.Envelope{ServiceID: p.Service, EnvironmentID: p.Environment, Event: e}
	}
	result, err := publisher.Publish(p.T.Context(), envelopes...)
	if err != nil {
		p.T.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		p.T.Fatal(err)
	}
	return result.EventIDs[len(result.EventIDs)-1]
}

// Work runs a worker until nothing is left that would run by itself.
func (s *Stage) Work() {
	s.T.Helper()
	w, err := worker.New(s.T.Context(), s.Config)
	if err != nil {
		s.T.Fatal(err)
	}
	if err := w.RunUntilIdle(s.T.Context(), 3*time.Minute); err != nil {
		s.T.Fatalf("work until idle: %v\n%s", err, s.Dump())
	}
}

// Start runs a worker until the returned function is called.
func (s *Stage) Start() (stop func()) {
	s.T.Helper()
	w, err := worker.New(s.T.Context(), s.Config)
	if err != nil {
		s.T.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.T.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.T.Errorf("worker: %v", err)
		}
	})
	s.T.Cleanup(stop)
	return stop
}

// Await polls until the condition holds.
func (s *Stage) Await(what string, holds func() bool) {
	s.T.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			s.T.Fatalf("waited too long for: %s\n%s", what, s.Dump())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Event is what a test looks at of an event.
type Event struct {
	Sequence     int64   `db:"sequence"`
	Type         string  `db:"type"`
	State        string  `db:"state"`
	Outcome      *string `db:"outcome"`
	ErrorClass   *string `db:"error_class"`
	ErrorCode    *string `db:"error_code"`
	Error        *string `db:"error"`
	AttemptCount int     `db:"attempt_count"`
	Resources    *string `db:"resources"` // nil until a worker has written the event
}

// String is the state, with the outcome or the error's code.
func (e Event) String() string {
	switch {
	case e.Outcome != nil:
		return e.State + " " + *e.Outcome
	case e.ErrorCode != nil:
		return e.State + " " + *e.ErrorCode
	}
	return e.State
}

const eventQuery = `SELECT sequence, type, state, outcome, error_class, error_code, error, attempt_count, resources FROM {outbox}`

// Event reads an event.
func (s *Stage) Event(id string) Event {
	s.T.Helper()
	var e Event
	if err := s.DB.GetContext(s.T.Context(), &e, s.DB.SQL(eventQuery+` WHERE CAST(event_id AS text) = ?`), id); err != nil {
		s.T.Fatal(err)
	}
	return e
}

// Dump tells the state of all events, for failures.
func (s *Stage) Dump() string {
	var list []Event
	if err := s.DB.SelectContext(context.WithoutCancel(s.T.Context()), &list,
		s.DB.SQL(eventQuery+` ORDER BY sequence LIMIT 100`)); err != nil {
		return err.Error()
	}
	text := ""
	for _, e := range list {
		text += fmt.Sprintf("%d %s: %s", e.Sequence, e.Type, e)
		if e.Error != nil {
			text += ": " + *e.Error
		}
		text += "\n"
	}
	return text
}

// Ledger reads the ledger's row of a media; nil if there is none.
func (p *Place) Ledger(media string) *ledger.Object {
	p.T.Helper()
	var laneID int64
	if err := p.DB.GetContext(p.T.Context(), &laneID, p.DB.SQL(`
		SELECT lane_id FROM {lanes} WHERE service_id = ? AND environment_id = ?`), p.Service, p.Environment); err != nil {
		p.T.Fatal(err)
	}
	view, err := ledger.New(p.DB).View(p.T.Context(), laneID, media, p.Bucket, "")
	if err != nil {
		p.T.Fatal(err)
	}
	return view.Object
}

// Contents maps the bucket's keys to their contents.
func (p *Place) Contents() map[string]string {
	p.T.Helper()
	contents := make(map[string]string)
	for _, key := range p.AWS.Keys(p.Bucket) {
		_, content, err := p.AWS.GetDirect(p.Bucket, key)
		if err != nil {
			p.T.Fatal(err)
		}
		contents[key] = string(content)
	}
	return contents
}

func ref[T any](value T) *T { return &value }
