package subscriber_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// Two of the CMS's transactions are open at the same time and publish for the
// same tenant, even about the same media and environments: neither ever waits,
// for the other or for a worker, whichever ends first and however.
func TestTransactionsOfOneTenantPublishAndEndWithoutWaiting(t *testing.T) {
	t.Parallel()
	workers := map[string]func(w *world) (end func()){
		"no worker":                     func(*world) func() { return func() {} },
		"workers run":                   (*world).workersRun,
		"a worker notes an environment": (*world).stuckNoting,
		"a worker is in a settlement":   (*world).stuckSettling,
	}
	for name, begin := range workers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dbtest.PostgreSQL(t))
			w.Publish("s", outboxtest.Touch("a"))
			w.Want() // the lane exists
			before := len(outboxtest.All[int64](w.World, `SELECT sequence FROM {outbox}`))
			feed, err := subscriber.Begin(t.Context(), w.Store)
			if err != nil {
				t.Fatal(err)
			}
			end := begin(w)
			rapid.Check(t, func(t *rapid.T) { publishTogether(t, w) })
			end()
			var seen []int64
			w.Await("what was published is seen", func() bool {
				found, err := feed.Look(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				seen = append(seen, found...)
				return len(found) == 0
			})
			slices.Sort(seen)
			if diff := cmp.Diff(outboxtest.All[int64](w.World, `SELECT sequence FROM {outbox} ORDER BY sequence`)[before:], seen); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func publishTogether(t *rapid.T, w *world) {
	both := []*publishing{w.beginPublishing(), w.beginPublishing()}
	for range rapid.IntRange(2, 6).Draw(t, "statements") {
		of := rapid.IntRange(0, 1).Draw(t, "transaction")
		both[of].publish(rapid.SliceOfN(rapid.Custom(anyEvent), 1, 4).Draw(t, "events")...)
	}
	first := rapid.IntRange(0, 1).Draw(t, "ends first")
	for _, p := range []*publishing{both[first], both[1-first]} {
		p.end(rapid.Bool().Draw(t, "commits"))
	}
}

func anyEvent(t *rapid.T) events.Envelope {
	medias := rapid.SampledFrom([]string{"a", "b"})
	version := events.NewVersion(time.UnixMicro(1_750_000_000_000_000))
	list := []events.Event{
		outboxtest.Touch(medias.Draw(t, "media")),
		outboxtest.Touch(medias.Draw(t, "media"), "one.png", "two.png"),
		events.MediaUploaded{MediaID: medias.Draw(t, "media"), FileName: "one.png", ContentType: "image/png",
			Source: "file:one.png", Version: version},
		events.EnvironmentCreated{SourceEnvironmentID: "", EnvironmentServiceID: "s-e"},
		events.EnvironmentDeleted{},
	}
	e := events.Envelope{ServiceID: "s", Event: rapid.SampledFrom(list).Draw(t, "event")}
	if e.Event.Media() == "" {
		e.EnvironmentID = "e"
	}
	return e
}

// workersRun has two workers complete whatever is published.
func (w *world) workersRun() func() {
	var list []*worker
	for i := range 2 {
		list = append(list, start(w.T, w.Another(), configured(fmt.Sprint("w", i)),
			func(context.Context, *outbox.Delivery) *outbox.Verdict { return &outboxtest.Done }))
	}
	return func() {
		for _, worker := range list {
			if err := worker.stop(); err != nil {
				w.T.Error(err)
			}
		}
	}
}

// stuckNoting leaves a worker in the middle of the transaction that notes a new
// environment: somebody else has the lane's row.
func (w *world) stuckNoting() func() {
	w.PublishIn("s", "e", events.EnvironmentCreated{EnvironmentServiceID: "s-e"})
	other, err := w.DB.BeginTxx(w.T.Context(), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = other.Rollback() })
	if _, err := other.ExecContext(w.T.Context(), w.DB.SQL(`SELECT 1 FROM {lanes} FOR UPDATE`)); err != nil {
		w.T.Fatal(err)
	}
	noted := make(chan error, 1)
	go func() {
		_, err := w.Store.NoteCreations(w.T.Context())
		noted <- err
	}()
	w.AwaitBlocked("it waits for the lane")
	return func() {
		if err := errors.Join(other.Rollback(), <-noted); err != nil {
			w.T.Error(err)
		}
	}
}

// stuckSettling leaves a worker in the middle of a settlement, with all the
// locks that it takes.
func (w *world) stuckSettling() func() {
	reached, release := make(chan struct{}), make(chan struct{})
	arrive := sync.OnceFunc(func() { close(reached) })
	store := outbox.New(w.DB, &outboxtest.Recorder{DB: w.DB, Refuse: func(*outbox.Settlement) error {
		arrive()
		select {
		case <-release:
		case <-w.T.Context().Done():
		}
		return nil
	}})
	lane := w.Claim("w")[0]
	settled := make(chan error, 1)
	e := w.Read(lane.LaneID)[0]
	go func() {
		settled <- store.Settle(w.T.Context(), []*outbox.Settlement{outboxtest.Settlement(lane, e, outboxtest.RetryIn(time.Hour))})
	}()
	<-reached
	return func() {
		close(release)
		if err := <-settled; err != nil {
			w.T.Error(err)
		}
	}
}

// publishing is one of the CMS's transactions.
type publishing struct {
	w         *world
	tx        *sqlx.Tx
	pid       int
	publisher *events.Publisher
}

func (w *world) beginPublishing() *publishing {
	tx, err := w.DB.BeginTxx(w.T.Context(), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = tx.Rollback() })
	p := &publishing{w: w, tx: tx}
	if err := tx.GetContext(w.T.Context(), &p.pid, `SELECT pg_backend_pid()`); err != nil {
		w.T.Fatal(err)
	}
	p.publisher, err = events.NewPublisher(tx, events.PublisherOptions{Dialect: events.PostgreSQL, Schema: w.DB.Schema})
	if err != nil {
		w.T.Fatal(err)
	}
	return p
}

func (p *publishing) publish(list ...events.Envelope) {
	p.neverWaits(func() error {
		_, err := p.publisher.Publish(p.w.T.Context(), list...)
		return err
	})
}

func (p *publishing) end(commit bool) {
	if commit {
		p.neverWaits(p.tx.Commit)
	} else {
		p.neverWaits(p.tx.Rollback)
	}
}

// waits are the locks that a session doesn't get because others of this
// database have them. Extending a table's file is over in a moment, whatever
// the others do next.
const waits = `
	SELECT concat_ws(' ', l.mode, 'of', l.locktype, l.relation::regclass::text,
		'while', a.pid, 'is', a.state, 'in:', a.query)
	FROM pg_locks l JOIN pg_stat_activity a ON a.pid = ANY (pg_blocking_pids(l.pid))
	WHERE l.pid = ? AND NOT l.granted AND l.locktype <> 'extend' AND a.datname = current_database()`

// neverWaits fails the test as soon as the transaction has to wait.
func (p *publishing) neverWaits(do func() error) {
	p.w.T.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				p.w.T.Fatal(err)
			}
			return
		case <-tick.C:
		}
		if list := outboxtest.All[string](p.w.World, waits, p.pid); len(list) > 0 {
			select {
			case err := <-ended: // then its session may be a worker's by now
				if err != nil {
					p.w.T.Fatal(err)
				}
				return
			default:
				p.w.T.Fatalf("a publisher waits for %v", list)
			}
		}
	}
}

// Somebody holds a lane's row for longer than a lease. The worker says so, and goes on
// when it is let go.
func TestALockThatIsBusyForLongerThanALeaseIsLogged(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	url := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, url))
	db, err := database.Open(t.Context(), url, database.DefaultSchema, database.LockTimeout(lease))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	sequence := w.Publish("s", outboxtest.Touch("a"))[0]
	w.Want()
	said := make(chan struct{}, 1)
	h := newHands()
	worker := start(t, outbox.New(db, &outboxtest.Recorder{DB: db}), configured("w", func(c *subscriber.Config) {
		c.Lease = lease
		c.Logger = slog.New(slog.NewTextHandler(saying{"lock timeout", said}, nil))
	}), h.handle)
	w.Await("it runs", func() bool { return len(h.running()) == 1 })
	holder := w.Begin()
	if _, err := holder.ExecContext(t.Context(), w.DB.SQL(`SELECT lane_id FROM {lanes} FOR UPDATE`)); err != nil {
		t.Fatal(err)
	}
	h.end(sequence, outboxtest.Done)
	<-said
	w.Commit(holder)
	w.Await("it runs, or ran to its end", func() bool {
		h.end(sequence, outboxtest.Done)
		return w.State(sequence) == "completed done"
	})
	if err := worker.stop(); err != nil {
		t.Error(err)
	}
}

// saying tells when a log says something.
type saying struct {
	what string
	said chan<- struct{}
}

func (s saying) Write(line []byte) (int, error) {
	if strings.Contains(string(line), s.what) {
		select {
		case s.said <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}
