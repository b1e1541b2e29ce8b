package e2e_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// trouble is something that happens to workers again and again.
type trouble struct {
	name string
	// between prepares what stands between workers and database, and returns
	// the database's URL, the one that workers use, and what strikes.
	between func(t *testing.T) (direct, workers string, strike func(*fleet))
	// every is the mean time from one strike to the next.
	every time.Duration
	// spares says that no event may lose an attempt by it.
	spares bool
}

var troubles = []trouble{
	{
		name: "SIGKILL", every: time.Second, spares: true,
		between: func(t *testing.T) (string, string, func(*fleet)) {
			url := pgtest.URL(t)
			return url, url, (*fleet).kill
		},
	},
	{
		name: "SIGSTOP for longer than a lease", every: 5 * lease / 6, spares: true,
		between: func(t *testing.T) (string, string, func(*fleet)) {
			url := pgtest.URL(t)
			return url, url, (*fleet).freeze
		},
	},
	{
		name: "the database is restarted", every: 3 * time.Second,
		between: func(t *testing.T) (string, string, func(*fleet)) {
			server := pgtest.StartOwn(t)
			url := server.URL(t)
			return url, url, func(f *fleet) {
				mode := pgtest.Fast
				if f.strikes++; f.strikes%2 == 0 {
					mode = pgtest.Immediate
				}
				f.await()
				server.Restart(t, mode)
			}
		},
	},
	{
		name: "PgBouncer is restarted, SIGKILL behind it", every: 2 * time.Second,
		between: func(t *testing.T) (string, string, func(*fleet)) {
			url := pgtest.URL(t)
			bouncer := pgtest.StartPgBouncer(t, url)
			return url, bouncer.URL, func(f *fleet) {
				f.kill()
				f.await()
				bouncer.Restart(t)
			}
		},
	},
	{
		name: "answers to commits are lost", every: time.Second,
		between: func(t *testing.T) (string, string, func(*fleet)) {
			url := pgtest.URL(t)
			network := pgtest.StartNetwork(t, url)
			return url, network.URL, func(*fleet) { network.LoseAnswers() }
		},
	},
}

// lease is as short as a busy machine can renew it.
const lease = 3 * time.Second

// troubled is how long a test makes trouble: OWNBUCKET_SOAK, or seconds.
func troubled(t testing.TB, otherwise time.Duration) time.Duration {
	t.Helper()
	set := os.Getenv("OWNBUCKET_SOAK")
	if set == "" {
		return otherwise
	}
	long, err := time.ParseDuration(set)
	if err != nil {
		t.Fatalf("OWNBUCKET_SOAK: %v", err)
	}
	return long
}

// Real workers under steady traffic, to which the same happens again and
// again: nothing is lost, nothing takes effect twice, and no lane is stuck.
func TestNothingIsLostOrDoneTwiceWhen(t *testing.T) {
	for _, trouble := range troubles {
		t.Run(trouble.name, func(t *testing.T) {
			long(t)
			t.Parallel()
			direct, workers, strike := trouble.between(t)
			x := newTrial(t, direct, workers, lease, "OWNBUCKET_RETRY_BASE=100ms", "OWNBUCKET_RETRY_ATTEMPTS=100")
			x.begin(3)
			strikes := x.under(trouble.every, troubled(t, 12*time.Second), func() { strike(x.fleet) })
			x.finish()
			x.expectModel(strikes)
			if trouble.spares {
				x.expectNoAttemptLost()
			}
		})
	}
}

// trial is an installation with its traffic and a referee.
type trial struct {
	*fleet
	*traffic
	*referee
	t       *testing.T
	aws     *cloud
	endFlow context.CancelFunc
}

func newTrial(t *testing.T, direct, workers string, lease time.Duration, settings ...string) *trial {
	t.Helper()
	const services = 4
	root := t.TempDir()
	aws := startCloud(t)
	i := install(t, workers, root, aws.clouds, append(settings, "OWNBUCKET_LEASE_DURATION="+lease.String())...)
	x := &trial{
		fleet: &fleet{installation: i, t: t}, traffic: openTraffic(t, i, aws, workers, root, services),
		referee: newReferee(t, direct, lease), t: t, aws: aws,
	}
	// Some calls are long, and some arrive although their sender is dead by
	// then: still within its lease.
	const late = 750 * time.Millisecond
	aws.Inject(awslocal.Rule{API: "s3:*", Match: oneIn(50), Delay: time.Second})
	aws.Inject(awslocal.Rule{API: "s3:*", Match: oneIn(50), Before: func(context.Context, awslocal.Call) { <-time.After(late) }})
	aws.Inject(awslocal.Rule{API: "s3:*", Delay: 10 * time.Millisecond})
	return x
}

func oneIn(n int) func(awslocal.Call) bool {
	return func(awslocal.Call) bool { return rand.N(n) == 0 }
}

// begin starts workers and traffic, and returns when events end.
func (x *trial) begin(workers int) {
	x.t.Helper()
	ctx, cancel := context.WithCancel(x.t.Context())
	x.endFlow = cancel
	x.watch(x.t.Context(), x.finished.Store)
	x.fleet = x.launch(x.t, workers)
	x.flow(ctx)
	until(x.t, "the first events to end", func() bool { return x.finished.Load() > 0 })
}

// under strikes again and again, at random moments, and tells how often.
func (x *trial) under(every, duration time.Duration, strike func()) (strikes int) {
	deadline := time.After(duration)
	for {
		select {
		case <-deadline:
			return strikes
		case <-time.After(every/2 + rand.N(every)):
			strike()
			strikes++
		}
	}
}

// finish ends the traffic and, when all events have ended, the workers.
func (x *trial) finish() {
	x.t.Helper()
	x.endFlow()
	x.wait()
	x.thaw()
	x.aws.ClearFaults()
	x.t.Cleanup(x.explainUnfinished)
	until(x.t, "all events to end", func() bool { return x.finished.Load() >= x.published.Load() })
	x.retire()
	x.work(1) // copies are work, too
}

// expectModel expects bucket, ledger and events to be as if nothing had
// happened, whatever was in flight when it did, often.
func (x *trial) expectModel(strikes int) {
	x.t.Helper()
	x.t.Logf("%d events, %d strikes, %d leases taken over", x.published.Load(), strikes,
		x.count(`SELECT coalesce(sum(lease_token), 0) FROM {lanes} WHERE tainted_to > 0`))
	x.expectAllEnded(x.published.Load())
	x.expectNoLease()
	for _, s := range x.services {
		bucket := s.production.Bucket
		expect(x.t, s.name, x.aws.objects(x.t, bucket), nil, s.places()...)
		etags := make(map[string]string)
		for _, o := range x.aws.Objects(bucket) {
			etags[o.Key] = o.ETag
		}
		x.expectLedger(s.name, etags, s.places())
	}
	x.aws.expectNothingBeyondTheManual(x.t)
	x.expectEffectsOnce()
	if x.t.Failed() {
		x.explain()
	}
}

// expectEffectsOnce expects that each upload's bytes, which are its alone,
// were stored once, whoever sent them how often.
func (x *trial) expectEffectsOnce() {
	x.t.Helper()
	stored := make(map[string]int)
	for _, entry := range x.aws.Log() {
		if entry.API == "s3:PutObject" && entry.Status == http.StatusOK {
			stored[entry.Header.Get("X-Amz-Checksum-Sha256")]++
		}
	}
	for _, times := range stored {
		if times > 1 {
			x.t.Errorf("an upload was stored %d times", times)
		}
	}
	// What was deleted with its environment may never have been stored.
	if superseded := x.count(`SELECT count(*) FROM {outbox} WHERE type = 'MediaUploaded' AND outcome = 'superseded'`); int64(len(stored)) < x.uploads.Load()-int64(superseded) {
		x.t.Errorf("%d uploads were stored of %d", len(stored), x.uploads.Load())
	}
}

// explain shows, where an event of a media ended as it shouldn't, what else
// happened to its environment about then.
func (x *trial) explain() {
	var odd []struct {
		Service string `db:"service_id"`
		Started int64  `db:"started_at"`
	}
	if err := x.db.SelectContext(x.t.Context(), &odd, x.db.SQL(`
		SELECT e.service_id, a.started_at FROM {outbox} e JOIN {attempts} a USING (sequence)
		WHERE e.state IN ('dead', 'retryable') ORDER BY a.started_at LIMIT 2`)); err != nil {
		x.t.Error(err)
	}
	for _, one := range odd {
		const about = 12 * time.Second
		from, to := one.Started-about.Microseconds(), one.Started+time.Second.Microseconds()
		var events []string
		if err := x.db.SelectContext(x.t.Context(), &events, x.db.SQL(`
			SELECT concat_ws(' ', to_timestamp(finished_at / 1e6)::time, sequence, environment_id, type, state, outcome, worker,
				'took', duration_us, data) FROM {outbox}
			WHERE service_id = ? AND coalesce(finished_at, started_at, created_at) BETWEEN ? AND ? ORDER BY finished_at`),
			one.Service, from, to); err != nil {
			x.t.Error(err)
		}
		for _, event := range events {
			x.t.Log(event)
		}
		for _, s := range x.services {
			if s.name != one.Service {
				continue
			}
			for _, entry := range x.aws.Log() {
				if at := entry.Time.UnixMicro(); entry.Bucket == s.production.Bucket && at >= from && at <= to {
					x.t.Log(entry.Time.UTC().Format("15:04:05.000"), entry.Session, entry.API, entry.Key, entry.Status, entry.Code, entry.Header)
				}
			}
		}
	}
}

// explainUnfinished shows the events that have not ended, and who has their
// lanes.
func (x *trial) explainUnfinished() {
	if x.finished.Load() >= x.published.Load() {
		return
	}
	for _, query := range []string{
		`SELECT row_to_json(e)::text FROM {outbox} e WHERE finished_at IS NULL ORDER BY sequence LIMIT 20`,
		`SELECT row_to_json(a)::text FROM {attempts} a JOIN {outbox} e USING (sequence) WHERE e.finished_at IS NULL ORDER BY sequence LIMIT 20`,
		`SELECT concat(({now} - leased_until) / 1000, ' ms after its lease: ', row_to_json(l)) FROM {lanes} l
			WHERE leased_by IS NOT NULL OR ready_at IS NOT NULL OR gate_sequence IS NOT NULL`,
		`SELECT row_to_json(c)::text FROM {copies} c WHERE state <> 'ended'`,
		`SELECT row_to_json(h)::text FROM {holds} h`,
	} {
		var found []string
		if err := x.db.SelectContext(context.Background(), &found, x.db.SQL(query)); err != nil {
			x.t.Error(err)
		}
		for _, row := range found {
			x.t.Log(row)
		}
	}
}
