package e2e_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// onEachDatabase runs a test with an empty database of each kind.
func onEachDatabase(t *testing.T, test func(t *testing.T, database string)) {
	t.Helper()
	long(t)
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, "sqlite:"+filepath.Join(t.TempDir(), "ownbucket.db"))
	})
	t.Run("postgresql", func(t *testing.T) {
		t.Parallel()
		test(t, pgtest.URL(t))
	})
}

// load is more work than is done at once, for several customers: each media is
// uploaded, renamed, and some are then deleted.
type load struct {
	*installation
	t         testing.TB
	aws       *cloud
	places    []*place
	published int
	// renames and deletes are how many of the events are.
	uploads, renames, deletes int
}

func newLoad(t *testing.T, database string, settings ...string) *load {
	t.Helper()
	const services, each = 4, 60
	root := t.TempDir()
	contents := write(t, root, "content", 12)
	l := &load{t: t, aws: startCloud(t)}
	l.installation = install(t, database, root, l.aws.clouds, settings...)
	var lines []line
	for n := range services {
		p := l.production(fmt.Sprintf("SERVICE#%d", n), l.aws.customer(t, fmt.Sprintf("bucket-%d", n), "media"))
		l.places = append(l.places, p)
		for m := range each {
			media := fmt.Sprintf("media-%d", m)
			lines = append(lines, p.upload(media, nameOf(m, contents[m%len(contents)], awkward), contents[m%len(contents)], sizeAndSum))
			lines = append(lines, p.rename(media, fmt.Sprintf("renamed %d.png", m)))
			if m%5 == 0 {
				lines = append(lines, p.remove(media))
				l.deletes++
			}
			l.uploads++
			l.renames++
		}
	}
	l.published = len(lines)
	l.publish(lines...)
	return l
}

// expectDone expects that each event had its effect.
func (l *load) expectDone() {
	l.t.Helper()
	l.expectAllDone(l.published)
	for _, p := range l.places {
		expect(l.t, p.service, l.aws.objects(l.t, p.Bucket), nil, p)
	}
	l.aws.expectNothingBeyondTheManual(l.t)
}

func (l *load) count(state string) int {
	l.t.Helper()
	n := 0
	for _, row := range l.events() {
		if row.State == state {
			n++
		}
	}
	return n
}

// A deployment must cost nothing: what runs is finished, nothing is tried a
// second time, and the next worker needn't wait for a lease to lapse.
func TestSIGTERMUnderLoadFinishesWhatRunsAndLeavesTheRest(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, database string) {
		// Longer than the rest may take.
		const lease = 2 * time.Minute
		l := newLoad(t, database, "OWNBUCKET_LEASE_DURATION="+lease.String())
		slow := l.aws.Inject(awslocal.Rule{API: "s3:*", Delay: 50 * time.Millisecond})

		worker := l.start(nil, "worker")
		until(t, "the worker to be busy", func() bool { return slow.Hits() > 60 })
		worker.terminate()
		worker.succeed()

		completed, running := l.count("completed"), l.count("running")
		if running != 0 {
			t.Errorf("%d events are still running", running)
		}
		if completed == 0 || completed == l.published {
			t.Errorf("%d of %d events were completed before SIGTERM: the test is badly timed", completed, l.published)
		}
		for _, row := range l.events() {
			if want := map[bool]int{true: 1}[row.State == "completed"]; row.AttemptCount != want {
				t.Errorf("event %d is %s after %d attempts, want %d", row.Sequence, row.end(), row.AttemptCount, want)
			}
		}

		slow.Remove()
		if took := l.work(1); took > lease/2 {
			t.Errorf("the next worker took %s: a lease was left", took)
		}
		l.expectDone()
		l.aws.expectCalls(t, "both workers", 2*len(l.places), map[string]int{
			"s3:PutObject": l.uploads, "s3:HeadObject": l.renames, "s3:CopyObject": l.renames,
			"s3:DeleteObject": l.renames + l.deletes,
		})
	})
}

// Calls that outlast the grace period are cut off: their events lost no
// attempt, or the only one that they have here would make them dead.
func TestSIGTERMCutsOffWhatOutlastsTheGracePeriod(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, database string) {
		l := newLoad(t, database, "OWNBUCKET_GRACE_PERIOD=500ms", "OWNBUCKET_RETRY_ATTEMPTS=1")
		// Half of them have had their effect.
		l.aws.Inject(awslocal.Rule{API: "s3:*", Skip: 30, Times: 5, Hang: true})
		l.aws.Inject(awslocal.Rule{API: "s3:*", Skip: 30, Times: 5, Hang: true, AfterEffect: true})
		hanging := l.aws.Inject(awslocal.Rule{API: "s3:*", Skip: 30, Hang: true})

		worker := l.start(nil, "worker")
		until(t, "calls to hang", func() bool { return hanging.Hits() > 0 })
		worker.terminate()
		worker.succeed()
		if running, dead := l.count("running"), l.count("dead"); running+dead != 0 {
			t.Errorf("%d events are still running and %d dead", running, dead)
		}

		l.aws.ClearFaults()
		l.work(1)
		l.expectDone()
	})
}

// A worker that dies in the middle of its calls, some of which took effect
// though it never heard so, loses nothing and does nothing twice.
func TestAnotherWorkerTakesOverAfterSIGKILL(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, database string) {
		l := newLoad(t, database, "OWNBUCKET_LEASE_DURATION=10s", "OWNBUCKET_RETRY_ATTEMPTS=1")
		var unheard []*awslocal.Injection
		const each = 3
		for _, api := range []string{"s3:PutObject", "s3:CopyObject", "s3:DeleteObject"} {
			unheard = append(unheard, l.aws.Inject(awslocal.Rule{API: api, Skip: 20, Times: each, AfterEffect: true, Hang: true}))
		}
		l.aws.Inject(awslocal.Rule{API: "s3:*", Delay: 20 * time.Millisecond})

		dying := l.start(nil, "worker")
		until(t, "answers to be lost", func() bool {
			for _, rule := range unheard {
				if rule.Hits() < each {
					return false
				}
			}
			return true
		})
		if err := dying.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if code := dying.exit(); code == 0 {
			t.Fatal("the worker ended before it was killed")
		}
		if done := l.count("completed"); done == l.published {
			t.Fatal("all events were completed before the worker was killed: the test is badly timed")
		}
		l.aws.ClearFaults()

		started := time.Now()
		l.work(1)
		t.Logf("%d events, taken over in %s", l.published, time.Since(started).Round(time.Millisecond))
		l.expectDone()
		l.expectWrittenOnce(len(unheard) * each)
	})
}

// expectWrittenOnce expects one PUT and one COPY that took effect per media,
// those included whose answers were lost.
func (l *load) expectWrittenOnce(lost int) {
	l.t.Helper()
	writes := map[string]int{}
	for _, entry := range l.aws.Log() {
		heard, unheard := entry.Status == 200, entry.Code == "ConnectionReset"
		if unheard {
			lost--
		}
		if heard || unheard {
			writes[entry.API]++
		}
	}
	if lost != 0 {
		l.t.Errorf("%d answers fewer were lost than the test wanted", lost)
	}
	want := map[string]int{"s3:PutObject": l.uploads, "s3:CopyObject": l.renames}
	got := map[string]int{"s3:PutObject": writes["s3:PutObject"], "s3:CopyObject": writes["s3:CopyObject"]}
	if diff := cmp.Diff(want, got); diff != "" {
		l.t.Errorf("writes that took effect (-want +got):\n%s", diff)
	}
}
