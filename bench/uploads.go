package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/worker"
)

const (
	uploadServices = 16
	uploadSize     = 16 << 10
)

func uploadScenarios() []scenario {
	return []scenario{
		{"uploads/loopback", func(ctx context.Context, e *environment) ([]row, error) {
			return uploads(ctx, e, "uploads/loopback", 0)
		}},
		{"uploads/20ms", func(ctx context.Context, e *environment) ([]row, error) {
			return uploads(ctx, e, "uploads/20ms", inAWS)
		}},
	}
}

// uploads sets the real handlers beside a loop that only puts the same bytes,
// in turns.
func uploads(ctx context.Context, e *environment, name string, delay time.Duration) ([]row, error) {
	rounds, slice := pick(e.scale, 2, 5), pick(e.scale, 2000, 10_000)
	aws, root, err := startSite(e, uploadSize)
	if err != nil {
		return nil, err
	}
	i, err := e.install(ctx, "uploads", aws, root)
	if err != nil {
		return nil, err
	}
	if err := i.addCustomers(ctx, "ours", uploadServices); err != nil {
		return nil, err
	}
	alone, err := i.putter(ctx)
	if err != nil {
		return nil, err
	}
	server, err := serverOf(ctx, i.url)
	if err != nil {
		return nil, err
	}
	if err := aws.behave(delay); err != nil {
		return nil, err
	}
	w := &uploading{installation: i}
	arms := []*uploadArm{
		{name: "PutObject alone", put: alone.slice},
		{name: ownbucket.name, prepare: w.publish, put: w.slice},
	}
	for round := range rounds + 1 {
		if round == 1 { // the first one warmed everything up
			w.forget()
		}
		for _, arm := range arms {
			if err := arm.turn(ctx, slice, round > 0, []int{os.Getpid(), server, aws.pid}); err != nil {
				return nil, err
			}
		}
	}
	events := rounds * slice
	rows := append(arms[0].rows(name), arms[1].rows(name)...)
	ours, theirs := &rows[2], rows[0]
	ours.Peer, ours.Target, ours.Met = theirs.Subject, "≥ 0.8 × "+theirs.Subject, new(ours.Figure >= 0.8*theirs.Figure)
	rows = append(rows,
		row{Scenario: name, Subject: ownbucket.name, Events: events, Figure: w.calls / float64(events), Unit: "calls to AWS/event"},
		row{Scenario: name, Subject: ownbucket.name, Events: events, Figure: w.transactions / float64(events), Unit: "transactions/event"},
	)
	return append(rows, w.spent.row(name, events)), nil
}

// uploadArm is one way to upload, and what was seen of it.
type uploadArm struct {
	name string
	// prepare, where there is something to prepare, doesn't count.
	prepare func(ctx context.Context, n int) error
	put     func(ctx context.Context, n int) (time.Duration, error)

	events int
	took   time.Duration
	cpus   []time.Duration // of this process, PostgreSQL and the stand-in
}

func (a *uploadArm) turn(ctx context.Context, n int, counts bool, processes []int) error {
	if a.prepare != nil {
		if err := a.prepare(ctx, n); err != nil {
			return err
		}
	}
	before := used(processes)
	took, err := a.put(ctx, n)
	if err != nil || !counts {
		return err
	}
	a.events, a.took = a.events+n, a.took+took
	after := used(processes)
	a.cpus = append(a.cpus, make([]time.Duration, len(processes)-len(a.cpus))...)
	for i := range processes {
		a.cpus[i] += after[i] - before[i]
	}
	return nil
}

// used is the CPU time that each process has used by now. This process's
// children are counted apart.
func used(processes []int) []time.Duration {
	list := make([]time.Duration, len(processes))
	for i, pid := range processes {
		if list[i] = cpu(pid); i == 0 {
			_, list[i] = stat(strconv.Itoa(pid))
		}
	}
	return list
}

func (a *uploadArm) rows(scenario string) []row {
	each := func(i int) float64 { return a.cpus[i].Seconds() * 1e6 / float64(a.events) }
	rate := float64(a.events) / a.took.Seconds()
	return []row{
		{Scenario: scenario, Subject: a.name, Events: a.events, Figure: rate, Unit: "events/s",
			Limit: "CPU: all processes share 2 cores"},
		{Scenario: scenario, Subject: a.name, Events: a.events, Figure: each(0) + each(1) + each(2), Unit: "µs CPU/event",
			Limit: fmt.Sprintf("this process %.0f, PostgreSQL %.0f, stand-in %.0f", each(0), each(1), each(2))},
	}
}

// uploading has workers upload, slice by slice.
type uploading struct {
	*installation
	published int
	above     int64 // the last event before those of this slice

	calls, transactions float64
	spent               spent
}

func (u *uploading) forget() { u.calls, u.transactions, u.spent = 0, 0, spent{} }

func (u *uploading) publish(ctx context.Context, n int) (err error) {
	if u.above, err = u.lastSequence(ctx); err != nil {
		return err
	}
	first := u.published
	u.published += n
	return u.publishUploads(ctx, "ours", uploadServices, uploadSize, first, first+n-1)
}

// slice runs a worker until what was published is done.
func (u *uploading) slice(ctx context.Context, _ int) (time.Duration, error) {
	before, err := u.usage(ctx)
	if err != nil {
		return 0, err
	}
	if err := u.spent.during(func() error { return u.work(ctx) }); err != nil {
		return 0, err
	}
	after, err := u.usage(ctx)
	if err != nil {
		return 0, err
	}
	u.calls += after.calls - before.calls
	u.transactions += after.transactions - before.transactions
	return u.took(ctx, u.above)
}

func (u *uploading) work(ctx context.Context) error {
	w, done, err := u.worker(ctx, func(c *worker.Config) { c.IntegrationConcurrency = slots })
	if err != nil {
		return err
	}
	return errors.Join(w.RunUntilIdle(ctx, 10*time.Minute), done())
}

type usage struct{ calls, transactions float64 }

// usage counts what workers asked of others so far. A session's transactions
// are all counted when it has ended.
func (u *uploading) usage(ctx context.Context) (usage, error) {
	counts, err := u.aws.counts()
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, n := range counts {
		sum.calls += float64(n)
	}
	err = u.db.GetContext(ctx, &sum.transactions, `
		SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`)
	return sum, err
}

// putter calls PutObject and nothing else.
type putter struct {
	clients []*s3.Client
	buckets []string
	next    int
}

// putter makes clients of the same customers. Their connections are kept as
// ours are.
func (i *installation) putter(ctx context.Context) (*putter, error) {
	list, err := integration.New(i.db).List(ctx, 0)
	if err != nil {
		return nil, err
	}
	p := &putter{}
	config := i.aws.config()
	config.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 1024, 128
	})
	for _, one := range list {
		role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(config), one.RoleARN, func(o *stscreds.AssumeRoleOptions) {
			o.ExternalID = &one.ExternalID
		})
		p.clients = append(p.clients, s3.NewFromConfig(config, func(o *s3.Options) {
			o.Credentials, o.UsePathStyle = aws.NewCredentialsCache(role), true
		}))
		p.buckets = append(p.buckets, one.Bucket)
	}
	return p, nil
}

// slice puts n objects with as many goroutines as a worker has slots, and
// returns how long it took.
func (p *putter) slice(ctx context.Context, n int) (time.Duration, error) {
	content := make([]byte, uploadSize)
	numbers := make(chan int)
	failed := make(chan error, slots)
	var putting sync.WaitGroup
	started := time.Now()
	for range slots {
		putting.Go(func() {
			for k := range numbers {
				if err := p.put(ctx, k, content); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	var err error
	for range n {
		select {
		case numbers <- p.next:
			p.next++
			continue
		case err = <-failed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	close(numbers)
	putting.Wait()
	return time.Since(started), err
}

func (p *putter) put(ctx context.Context, number int, content []byte) error {
	at := number % len(p.clients)
	_, err := p.clients[at].PutObject(ctx, &s3.PutObjectInput{
		Bucket: &p.buckets[at], Key: aws.String("media/alone-" + strconv.Itoa(number) + ".png"),
		Body: bytes.NewReader(content), ContentLength: aws.Int64(uploadSize), ContentType: aws.String("image/png"),
		IfNoneMatch: aws.String("*"),
		Metadata: map[string]string{
			"upload-source": "microcms", "microcms-service": p.buckets[at],
			"microcms-version": "20260101000000", "microcms-status": "public",
		},
	})
	if err != nil {
		return fmt.Errorf("put an object: %w", err)
	}
	return nil
}
