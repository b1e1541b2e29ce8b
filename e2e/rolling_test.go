package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// mostDeploys bounds how often it is tried to cut a call off.
const mostDeploys = 100

// A deployment replaces one worker after another while customers work: it
// costs no event an attempt, and none waits until a lease has lapsed.
func TestARollingRestartUnderLoadCostsNothing(t *testing.T) {
	for _, site := range []struct {
		name     string
		between  func(t *testing.T, url string) string
		settings []string
		// cutsOff: the grace period is shorter than some calls.
		cutsOff bool
	}{
		{name: "PostgreSQL", between: func(_ *testing.T, url string) string { return url }},
		{
			name: "behind PgBouncer, with calls that outlast the grace period", cutsOff: true,
			between:  func(t *testing.T, url string) string { return pgtest.PgBouncer(t, url) },
			settings: []string{"OWNBUCKET_GRACE_PERIOD=300ms"},
		},
	} {
		t.Run(site.name, func(t *testing.T) {
			long(t)
			t.Parallel()
			url := pgtest.URL(t)
			// Longer than the test: who had to wait for one would be seen.
			const lease = time.Hour
			x := newTrial(t, url, site.between(t, url), lease, site.settings...)
			x.begin(3)
			deploys := x.under(time.Second, troubled(t, 8*time.Second), x.deploy)
			interrupted := func() int { return x.count(`SELECT count(*) FROM {attempts} WHERE error_class = 'interrupted'`) }
			for site.cutsOff && interrupted() == 0 && deploys < mostDeploys {
				x.deploy() // few calls take so long: none may have been under way
				deploys++
			}
			x.finish()
			x.expectModel(deploys)
			x.expectNoAttemptLost()
			x.none("leases that lapsed", `SELECT lane_id, lapse_count, tainted_to FROM {lanes} WHERE lapse_count > 0 OR tainted_to > 0`)
			if n := interrupted(); n > 0 != site.cutsOff {
				t.Errorf("%d attempts were interrupted by %d deployments", n, deploys)
			}
		})
	}
}

// deploy replaces the next worker.
func (x *trial) deploy() {
	x.t.Helper()
	n := x.strikes % len(x.workers)
	x.strikes++
	old := x.workers[n]
	x.workers[n] = x.start(nil, "worker")
	old.terminate()
	old.succeed()
	x.none("leases left by a worker that ended", fmt.Sprintf(
		`SELECT lane_id, leased_by FROM {lanes} WHERE leased_by LIKE '%%-%d-%%'`, old.Process.Pid))
}
