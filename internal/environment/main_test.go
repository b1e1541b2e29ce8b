package environment_test

import (
	"context"
	"flag"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestMain(m *testing.M) {
	// Each check is a whole installation; -rapid.checks=N makes more of them.
	if err := flag.Set("rapid.checks", "12"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const (
	service = "SERVICE#1"
	store   = "customer-bucket"
)

// scene is an installation with one customer, whose production is prod.
type scene struct {
	*stage.Stage
	t    testing.TB
	prod *stage.Place
}

func newScene(t testing.TB, db *database.DB) *scene {
	t.Helper()
	s := stage.New(t, db)
	return &scene{Stage: s, t: t, prod: s.Customer(service, store, "media")}
}

// created makes an EnvironmentCreated; the environment's service ID is made of
// its name.
func created(name, source string) events.Event {
	return events.EnvironmentCreated{SourceEnvironmentID: source, EnvironmentServiceID: serviceID(name)}
}

func serviceID(name string) string { return "service-" + name }

func deleted() events.Event { return events.EnvironmentDeleted{} }

// at is an event of an environment.
type at struct {
	place *stage.Place
	event events.Event
}

// publish publishes events of several environments in one transaction, and
// returns their IDs.
func (s *scene) publish(list ...at) []string {
	s.t.Helper()
	tx, err := s.DB.BeginTxx(s.t.Context(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	ids := s.publishIn(tx, list...)
	if err := tx.Commit(); err != nil {
		s.t.Fatal(err)
	}
	return ids
}

func (s *scene) publishIn(tx *sqlx.Tx, list ...at) []string {
	s.t.Helper()
	dialect := events.PostgreSQL
	if s.DB.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: dialect, Schema: s.DB.Schema})
	if err != nil {
		s.t.Fatal(err)
	}
	envelopes := make([]events.Envelope, len(list))
	for i, a := range list {
		envelopes[i] = events.Envelope{ServiceID: a.place.Service, EnvironmentID: a.place.Environment, Event: a.event}
	}
	result, err := publisher.Publish(s.t.Context(), envelopes...)
	if err != nil {
		s.t.Fatal(err)
	}
	return result.EventIDs
}

// directory is where an environment's media go.
func directory(name string) string { return "media/" + bucket.Directory(serviceID(name)) + "/" }

// holds compares the bucket with what it should hold.
func (s *scene) holds(want map[string]string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.prod.Contents()); diff != "" {
		s.t.Errorf("bucket (-want +got):\n%s\n%s", diff, s.Dump())
	}
}

// ends compares how events ended, in the order of their IDs.
func (s *scene) ends(ids []string, want ...string) {
	s.t.Helper()
	var got []string
	for i, id := range ids {
		// What an event did may be seen before its end is written, and what waits is
		// tried now and then.
		state, _, _ := strings.Cut(want[i], " ")
		var e stage.Event
		s.Await("the end of an attempt", func() bool {
			e = s.Event(id)
			return ended(e.State) || !ended(state) && e.State != outbox.Running
		})
		got = append(got, e.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("events (-want +got):\n%s\n%s", diff, s.Dump())
	}
}

func ended(state string) bool {
	return slices.Contains([]string{outbox.Completed, outbox.Dead, outbox.Discarded}, state)
}

// nothingRefused is what least privilege means for us.
func (s *scene) nothingRefused() {
	s.t.Helper()
	if refused := s.AWS.Refused(); len(refused) > 0 {
		s.t.Errorf("refused: %+v", refused)
	}
}

// environments is the package under test as the CLI uses it.
func (s *scene) environments() *environment.Store {
	return environment.New(s.DB, ledger.New(s.DB), integration.New(s.DB), nil, environment.Options{})
}

// shown is an environment's progress, without its directory.
func (s *scene) shown(name string) environment.Shown {
	s.t.Helper()
	shown, err := s.environments().Show(s.t.Context(), service, name)
	if err != nil {
		s.t.Fatalf("show environment: %v\n%s", err, s.Dump())
	}
	return shown
}

// copied compares an environment's progress, and which media failed with which
// code.
func (s *scene) copied(name, state string, done int64, failed map[string]string) {
	s.t.Helper()
	shown := s.shown(name)
	codes := make(map[string]string)
	for _, f := range shown.Failures {
		codes[f.MediaID] = f.ErrorCode
	}
	if failed == nil {
		failed = map[string]string{}
	}
	if diff := cmp.Diff(failed, codes); diff != "" || shown.State != state || shown.Done != done {
		s.t.Errorf("environment %s: %+v, want %s with %d done; failures (-want +got):\n%s\n%s", name, shown, state, done, diff, s.Dump())
	}
}

func (s *scene) retryFailed(name string) int64 {
	s.t.Helper()
	retried, err := s.environments().RetryFailed(s.t.Context(), service, name, "test", "mended", false)
	if err != nil {
		s.t.Fatal(err)
	}
	return retried.Changed
}

// discard ends an event as an operator would.
func (s *scene) discard(id string) {
	s.t.Helper()
	counts, err := outbox.New(s.DB, s.environments()).Discard(s.t.Context(), outbox.Filter{EventIDs: []string{id}},
		outbox.Action{Actor: "test", Reason: "test"})
	if err != nil || counts.Changed != 1 {
		s.t.Fatalf("discard: %+v, %v", counts, err)
	}
}

// retry runs an event again as an operator would.
func (s *scene) retry(id string) {
	s.t.Helper()
	counts, err := outbox.New(s.DB, s.environments()).Retry(s.t.Context(), outbox.Filter{EventIDs: []string{id}},
		outbox.Action{Actor: "test", Reason: "test"})
	if err != nil || counts.Changed != 1 {
		s.t.Fatalf("retry: %+v, %v", counts, err)
	}
}

// pause holds an environment's events until resume.
func (s *scene) pause(p *stage.Place) {
	s.t.Helper()
	if err := s.Settings.Pause(s.t.Context(), p.Service, p.Environment, "test", "test"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) resume(p *stage.Place) {
	s.t.Helper()
	if err := s.Settings.Resume(s.t.Context(), p.Service, p.Environment, "test", "test"); err != nil {
		s.t.Fatal(err)
	}
}

// copiesTo selects the copies into an environment's directory.
func copiesTo(name string) awslocal.Rule {
	return awslocal.Rule{API: "s3:CopyObject", Key: directory(name) + "*"}
}

// hanging holds up calls until it is removed.
func hanging(rule awslocal.Rule) awslocal.Rule {
	rule.Hang = true
	return rule
}

func throttled(rule awslocal.Rule, times int) awslocal.Rule {
	rule.Status, rule.Code, rule.Times = http.StatusServiceUnavailable, "SlowDown", times
	return rule
}

// slowRetries keeps a retry from coming within a test.
func (s *scene) slowRetries() { s.Config.RetryBase, s.Config.RetryAttempts = time.Hour, 25 }

// conflicting makes calls fail for a while, in a way that the SDK doesn't
// retry by itself.
func conflicting(rule awslocal.Rule, times int) awslocal.Rule {
	rule.Status, rule.Code, rule.Times = http.StatusConflict, "ConditionalRequestConflict", times
	return rule
}

// deadDeletion is a deletion of an environment that died at its first listing.
func (s *scene) deadDeletion(p *stage.Place) string {
	s.t.Helper()
	s.Config.RetryAttempts = 1
	lists := s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2"}, 0))
	deletion := p.Publish(deleted())
	s.Work()
	s.ends([]string{deletion}, "dead conflict")
	lists.Remove()
	return deletion
}

func (s *scene) putStranger(key string) {
	s.t.Helper()
	if _, err := s.AWS.PutDirect(store, key, []byte("a stranger's"), awslocal.Stranger{}); err != nil {
		s.t.Fatal(err)
	}
}

// own gives an environment settings of its own before it is created.
func (s *scene) own(p *stage.Place, prefix string) {
	s.t.Helper()
	settings := s.prod.Integration().Settings
	id := serviceID(p.Environment)
	p.Set(integration.Change{EnvironmentServiceID: &id, Bucket: &settings.Bucket, Region: &settings.Region,
		RoleARN: &settings.RoleARN, ExternalID: &settings.ExternalID, Prefix: &prefix})
}

// without removes a place's settings, and returns them for another service's use.
func (s *scene) without(p *stage.Place) integration.Settings {
	s.t.Helper()
	settings := p.Integration().Settings
	if err := s.Settings.Delete(s.t.Context(), p.Service, p.Environment, "test", "test"); err != nil {
		s.t.Fatal(err)
	}
	return settings
}

// role gives a place a role of its own.
func (s *scene) role(p *stage.Place, arn, policy string) awslocal.Role {
	s.t.Helper()
	role := awslocal.Role{ARN: arn, ExternalID: "external-of-its-own", Policy: policy, TrustPrincipal: "arn:aws:iam::999999999999:root"}
	if err := s.AWS.SetRole(role); err != nil {
		s.t.Fatal(err)
	}
	p.Set(integration.Change{RoleARN: &role.ARN, ExternalID: &role.ExternalID})
	return role
}

func (s *scene) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.DB.ExecContext(s.t.Context(), s.DB.SQL(query), args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) get(into any, query string, args ...any) {
	s.t.Helper()
	if err := s.DB.GetContext(s.t.Context(), into, s.DB.SQL(query), args...); err != nil {
		s.t.Fatal(err)
	}
}

// state is an environment's, empty until it was made.
func (s *scene) state(name string) string {
	shown, err := s.environments().Show(s.t.Context(), service, name)
	if err != nil {
		return ""
	}
	return shown.State
}

// effects counts the calls to a key that had an effect.
func (s *scene) effects(api, key string) int {
	n := 0
	for _, entry := range s.AWS.Log() {
		if entry.API == api && entry.Key == key && entry.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// stranger puts an object while a call is under way.
func (s *scene) stranger(key string) func(context.Context, awslocal.Call) {
	return func(context.Context, awslocal.Call) {
		if _, err := s.AWS.PutDirect(store, key, []byte("a stranger's"), awslocal.Stranger{}); err != nil {
			s.t.Error(err)
		}
	}
}
