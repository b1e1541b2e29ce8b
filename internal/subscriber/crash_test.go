package subscriber_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/outboxtest"
	"github.com/ownbucket/ownbucket/internal/subscriber"
)

// childVariable has the URL of the database on which this test binary works,
// instead of running tests.
const childVariable = "OUTBOX_WORKER_OF"

const crashLease = 2 * time.Second

// beWorker completes events, but hangs in those of media that say so. It tells
// on its standard output what it begins, and never ends by itself.
func beWorker() {
	ctx := context.Background()
	db, err := database.Open(ctx, os.Getenv(childVariable), database.DefaultSchema)
	if err != nil {
		panic(err)
	}
	s, err := subscriber.New(outbox.New(db, &outboxtest.Recorder{DB: db}),
		configured("child", func(c *subscriber.Config) { c.Lease = crashLease }))
	if err != nil {
		panic(err)
	}
	for _, topic := range events.Types() {
		go route(s, topic, func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			fmt.Println("began", d.Event.Media())
			if strings.HasPrefix(d.Event.Media(), "hang") {
				select {}
			}
			return &outboxtest.Done
		})
	}
	if err := s.Run(ctx); err != nil {
		panic(err)
	}
}

// The worker's process is killed while its handlers run: another takes over
// when the lease has lapsed, loses nothing and completes nothing twice.
func TestAKilledProcessIsTakenOver(t *testing.T) {
	t.Parallel()
	databaseURL := dbtest.PostgreSQLURL(t)
	w := newWorld(t, dbtest.Open(t, databaseURL))
	shared := make(map[int64][]string)
	var all []int64
	for i := range 40 {
		media := fmt.Sprint("quick ", i%5)
		if i%10 == 3 {
			media = fmt.Sprint("hang ", i/10)
		}
		for range 2 {
			sequence := w.Publish(fmt.Sprint("service ", i%3), outboxtest.Touch(media))[0]
			shared[sequence] = []string{fmt.Sprint(i%3, media)}
			all = append(all, sequence)
		}
	}

	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+databaseURL)
	child.Stderr = os.Stderr
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	hanging, lines := 0, bufio.NewScanner(output)
	for hanging < 3 && lines.Scan() {
		if strings.Contains(lines.Text(), "began hang") {
			hanging++
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		continue // what it said before it died
	}
	_ = child.Wait() // it was killed
	if hanging < 3 {
		t.Fatalf("the child began %d of the events that hang", hanging)
	}

	mayHaveRun := make(chan string, 100)
	start(t, w.Store, configured("heir", func(c *subscriber.Config) { c.Lease = crashLease }),
		func(_ context.Context, d *outbox.Delivery) *outbox.Verdict {
			if d.MayHaveRun {
				mayHaveRun <- d.Event.Media()
			}
			return &outboxtest.Done
		})
	w.Await("every event ends", func() bool { return w.finished() == len(all) })
	order := w.Effects()
	if len(order) != len(all) {
		t.Errorf("%d effects of %d events", len(order), len(all))
	}
	outboxtest.CheckOrder(t, order, shared)
	close(mayHaveRun)
	knew := 0
	for media := range mayHaveRun {
		if strings.HasPrefix(media, "hang") {
			knew++
		}
	}
	if knew < hanging {
		t.Errorf("the heir knew of %d of %d events that may have run", knew, hanging)
	}
}
