package handlers_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/ledger"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A check is a whole history through a worker: fewer than rapid's hundred do
	// for CI. -rapid.checks=1000 looks deeper.
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		if err := checks.Value.Set("20"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

const (
	customer = "customer-bucket"
	service  = "SERVICE#0f0e"
)

// each runs a test with a customer whose files go below media/, on every
// database. The manual's policy is enforced, and nothing may ask for more.
func each(t *testing.T, test func(t *testing.T, p *stage.Place)) {
	t.Helper()
	eachStage(t, func(t *testing.T, s *stage.Stage) { test(t, s.Customer(service, customer, "media")) })
}

// eachRefused is each for tests in which the customer refuses something.
func eachRefused(t *testing.T, test func(t *testing.T, p *stage.Place)) {
	t.Helper()
	eachStageRefused(t, func(t *testing.T, s *stage.Stage) { test(t, s.Customer(service, customer, "media")) })
}

func eachStageRefused(t *testing.T, test func(t *testing.T, s *stage.Stage)) {
	t.Helper()
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) { test(t, newStage(t, db)) })
}

// eachStage is each for tests with other customers.
func eachStage(t *testing.T, test func(t *testing.T, s *stage.Stage)) {
	t.Helper()
	eachURL(t, func(t *testing.T, s *stage.Stage, _ string) { test(t, s) })
}

// eachURL is eachStage for tests that open the database once more.
func eachURL(t *testing.T, test func(t *testing.T, s *stage.Stage, url string)) {
	t.Helper()
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newStage(t, dbtest.Open(t, url))
		test(t, s, url)
		if refused := s.AWS.Refused(); len(refused) > 0 {
			t.Errorf("asked for more than the manual's policy grants: %+v", refused)
		}
	})
}

func newStage(t *testing.T, db *database.DB) *stage.Stage {
	t.Helper()
	s := stage.New(t, db).AtAWS()
	s.Config.Poll = 20 * time.Millisecond // so many stages at once would poll the processors busy
	return s
}

// places makes one customer for each case of a table, so that all cases run at
// once, in one database.
func places[C any](s *stage.Stage, cases []C) []*stage.Place {
	s.T.Helper()
	list := make([]*stage.Place, len(cases))
	for i := range cases {
		list[i] = s.Customer(fmt.Sprintf("SERVICE#%d", i), fmt.Sprintf("customer-%d", i), "media")
	}
	return list
}

// run publishes events, each in a transaction of its own, and works until
// nothing is left to do, retries included. It returns the events' IDs.
func run(p *stage.Place, list ...events.Event) []string {
	p.T.Helper()
	ids := publish(p, list...)
	finish(p.Stage)
	return ids
}

func publish(p *stage.Place, list ...events.Event) []string {
	p.T.Helper()
	ids := make([]string, len(list))
	for i, e := range list {
		ids[i] = p.Publish(e)
	}
	return ids
}

// finish works until no event is left that isn't held, retries included.
func finish(s *stage.Stage) {
	s.T.Helper()
	for {
		s.Work()
		var waiting int
		if err := s.DB.GetContext(s.T.Context(), &waiting, s.DB.SQL(`
			SELECT count(*) FROM {outbox} e JOIN {lanes} l ON l.lane_id = e.lane_id
			WHERE e.state IN ('available', 'running', 'retryable') AND NOT l.held`)); err != nil {
			s.T.Fatal(err)
		}
		if waiting == 0 {
			return
		}
	}
}

// wantStates compares how events ended, in the order of their IDs.
func wantStates(t *testing.T, p *stage.Place, ids []string, want ...string) {
	t.Helper()
	got := make([]string, len(ids))
	for i, id := range ids {
		got[i] = p.Event(id).String()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s\n%s", diff, p.Dump())
	}
}

type contents = map[string]string

func wantContents(t *testing.T, p *stage.Place, want contents) {
	t.Helper()
	if diff := cmp.Diff(want, p.Contents()); diff != "" {
		t.Errorf("bucket (-want +got):\n%s\n%s", diff, p.Dump())
	}
}

// wantKeys compares the keys that the ledger has of media; an empty one is a
// tombstone, "none" no row.
func wantKeys(t *testing.T, p *stage.Place, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for media := range want {
		got[media] = ledgerKey(p, media)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
}

func ledgerKey(p *stage.Place, media string) string {
	switch row := p.Ledger(media); {
	case row == nil:
		return "none"
	case row.Key == nil:
		return ""
	default:
		return *row.Key
	}
}

// wantLedgerTrue holds the ledger against the bucket: every live row's object
// is there, as the row says.
func wantLedgerTrue(t *testing.T, p *stage.Place, media ...string) {
	t.Helper()
	objects := map[string]awslocal.Object{}
	for _, o := range p.AWS.Objects(p.Bucket) {
		objects[o.Key] = o
	}
	for _, m := range media {
		row := p.Ledger(m)
		if !row.Live() {
			continue
		}
		o, ok := objects[*row.Key]
		if !ok || o.ETag != row.ETag || o.Size != row.Size || o.ContentType != row.ContentType {
			t.Errorf("media %s: the ledger says %+v, the bucket has %+v", m, row, o)
		}
	}
}

// retry and discard are what an operator does.
func retry(p *stage.Place, ids ...string) {
	p.T.Helper()
	operate(p, operator(p).Retry, ids)
}

func discard(p *stage.Place, ids ...string) {
	p.T.Helper()
	operate(p, operator(p).Discard, ids)
}

func operator(p *stage.Place) *outbox.Store {
	return outbox.New(p.DB, environment.New(p.DB, ledger.New(p.DB), p.Settings, nil, environment.Options{}))
}

func operate(p *stage.Place, act func(context.Context, outbox.Filter, outbox.Action) (outbox.Counts, error), ids []string) {
	p.T.Helper()
	counts, err := act(p.T.Context(), outbox.Filter{EventIDs: ids}, outbox.Action{Actor: "operator", Reason: "test"})
	if err != nil {
		p.T.Fatal(err)
	}
	if counts.Changed != int64(len(ids)) {
		p.T.Fatalf("%d of %d events changed: %+v\n%s", counts.Changed, len(ids), counts, p.Dump())
	}
}

// stranger puts somebody else's object at a key.
func stranger(p *stage.Place, key, content string) {
	p.T.Helper()
	if _, err := p.AWS.PutDirect(p.Bucket, key, []byte(content), awslocal.Stranger{ContentType: "text/plain"}); err != nil {
		p.T.Fatal(err)
	}
}

// calls counts the calls to the customer's bucket since the last ResetCounts.
func calls(p *stage.Place) map[string]int { return p.AWS.BucketCounts(p.Bucket) }

// attempts lists the error codes of an event's attempts, "" for none.
func attempts(s *stage.Stage, id string) []string {
	s.T.Helper()
	var codes []string
	if err := s.DB.SelectContext(s.T.Context(), &codes, s.DB.SQL(`
		SELECT coalesce(a.error_code, '') FROM {attempts} a JOIN {outbox} e ON e.sequence = a.sequence
		WHERE CAST(e.event_id AS text) = ? ORDER BY a.number`), id); err != nil {
		s.T.Fatal(err)
	}
	return codes
}

// possibleWrites lists the keys of recorded possible writes.
func possibleWrites(p *stage.Place) []string {
	p.T.Helper()
	keys := []string{}
	if err := p.DB.SelectContext(p.T.Context(), &keys, p.DB.SQL(`
		SELECT object_key FROM {possible_writes} w JOIN {lanes} l ON l.lane_id = w.lane_id
		WHERE service_id = ? ORDER BY object_key, version`), p.Service); err != nil {
		p.T.Fatal(err)
	}
	return keys
}

func wantPossibleWrites(t *testing.T, p *stage.Place, want ...string) {
	t.Helper()
	if got := possibleWrites(p); !slices.Equal(got, want) {
		t.Errorf("possible writes at %q, want %q", got, want)
	}
}

// base64Of is how S3 spells a SHA-256 that events have in hex.
func base64Of(t *testing.T, hexadecimal string) string {
	t.Helper()
	sum, err := hex.DecodeString(hexadecimal)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sum)
}

func ref[T any](value T) *T { return &value }

// logbook keeps what workers log.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

// logged makes the workers of a place log into a book.
func logged(p *stage.Place) *logbook {
	book := &logbook{}
	p.Config.Logger = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return book
}

func (b *logbook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, string(line))
	return len(line), nil
}

// count is how many lines have all the words.
func (b *logbook) count(words ...string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.lines {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			n++
		}
	}
	return n
}
