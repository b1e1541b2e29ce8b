package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// What a worker has open doesn't depend on how many events it has seen. It is
// 20,000 of them here, and 100,000 with OWNBUCKET_SOAK.
func TestWhatAWorkerHasOpenStaysLevel(t *testing.T) {
	long(t)
	t.Parallel()
	const warmUp, steps = 2000, 9
	each := 2000
	if os.Getenv("OWNBUCKET_SOAK") != "" {
		each = 11_000
	}
	l := newLeakage(t)

	first := l.start(nil, "worker")
	l.work(warmUp)
	goroutines := l.goroutines(first)

	worker := l.start(nil, "worker")
	l.work(warmUp)
	before := l.open(worker)
	for range steps {
		l.work(each)
	}
	// Connections that were needed at once close one after another.
	var after open
	defer func() { t.Logf("after %d events %+v, after %d more %+v", warmUp, before, steps*each, after) }()
	until(t, fmt.Sprintf("what is open to be level with %+v", before), func() bool {
		after = l.open(worker)
		return after.within(before)
	})
	if got := l.goroutines(worker); got > goroutines+slack {
		t.Errorf("%d goroutines after %d events, %d after %d", got, warmUp+steps*each, goroutines, warmUp)
	}
}

// slack is how much more may be open: far less than one thing in 200 events.
const slack = 40

// open is what a process has open.
type open struct{ files, threads, connections, residentKiB int }

// within tells whether it is level. Memory that was freed may be kept.
func (o open) within(before open) bool {
	return o.files <= before.files+slack && o.threads <= before.threads+slack &&
		o.connections <= before.connections+slack/2 && o.residentKiB <= 2*before.residentKiB
}

// leakage is an installation with one customer, whose events do little.
type leakage struct {
	*installation
	*referee
	t         *testing.T
	publisher *service
	place     *place
	kept      content
	published int64
	finished  atomic.Int64
}

func newLeakage(t *testing.T) *leakage {
	t.Helper()
	url, root := pgtest.URL(t), t.TempDir()
	aws := startCloud(t)
	i := install(t, url, root, aws.clouds, "OWNBUCKET_LEASE_DURATION="+lease.String())
	traffic := openTraffic(t, i, aws, url, root, 1)
	l := &leakage{
		installation: i, referee: newReferee(t, url, lease), t: t,
		publisher: traffic.services[0], place: traffic.services[0].production,
	}
	l.kept = l.publisher.content()
	l.watch(t.Context(), l.finished.Store)
	return l
}

// work publishes n events, and returns when they have ended. Most need no call,
// some are deletions of what is not there, and a few are uploads.
func (l *leakage) work(n int) {
	l.t.Helper()
	envelopes := make([]events.Envelope, n)
	for i := range envelopes {
		service := l.place.service
		var event events.Event = events.MediaDeleted{
			MediaID: fmt.Sprintf("unknown-%d", i), FileName: fmt.Sprintf("unknown-%d.png", i), Version: l.place.version(),
		}
		switch {
		case i%20 == 0:
			event = l.place.uploaded(fmt.Sprintf("media-%d", i), fmt.Sprintf("%d.png", i), l.kept)
		case i%5 > 0:
			service = "SERVICE#without-integration"
		}
		envelopes[i] = events.Envelope{EventID: uuid.NewString(), ServiceID: service, Event: event}
	}
	if err := publishOnce(l.t.Context(), l.db, envelopes); err != nil {
		l.t.Fatal(err)
	}
	l.published += int64(n)
	until(l.t, fmt.Sprintf("%d events to end", n), func() bool { return l.finished.Load() == l.published })
	l.none("dead events", `SELECT sequence, error FROM {outbox} WHERE state = 'dead'`)
}

// open counts what a worker has open.
func (l *leakage) open(p *process) open {
	l.t.Helper()
	of := fmt.Sprintf("/proc/%d/", p.Process.Pid)
	files, err := os.ReadDir(of + "fd")
	if err != nil {
		l.t.Fatal(err)
	}
	status, err := os.ReadFile(of + "status")
	if err != nil {
		l.t.Fatal(err)
	}
	number := func(field string) int {
		_, after, _ := strings.Cut(string(status), "\n"+field+":")
		n, err := strconv.Atoi(strings.Fields(after)[0])
		if err != nil {
			l.t.Fatalf("%s: %v", field, err)
		}
		return n
	}
	return open{
		files: len(files), threads: number("Threads"), residentKiB: number("VmRSS"),
		connections: l.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()`),
	}
}

// goroutines ends a worker that has nothing to do, and counts them in its last
// words.
func (l *leakage) goroutines(p *process) int {
	l.t.Helper()
	if err := p.Process.Signal(syscall.SIGQUIT); err != nil {
		l.t.Fatal(err)
	}
	p.exit()
	said, err := os.ReadFile(p.errors)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.Remove(p.errors); err != nil { // for once not a sign of a crash
		l.t.Fatal(err)
	}
	n := bytes.Count(said, []byte("\ngoroutine "))
	if n == 0 {
		l.t.Fatalf("no goroutines in what the worker said:\n%s", said)
	}
	return n
}
