package e2e_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
)

// referee looks into the database past all that workers say of themselves.
type referee struct {
	t     testing.TB
	db    *database.DB
	lease time.Duration
	// watching is under way until the test's end.
	watching sync.WaitGroup
}

// witness writes down, in the transaction that does it, each end of an event
// and each recorded attempt: whose it is, and who held the lane's lease.
const witness = `
CREATE TABLE public.witnessed (sequence bigint, completed boolean, worker text, holder text);
CREATE FUNCTION public.witness_completion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.witnessed SELECT NEW.sequence, true, NEW.worker, leased_by
		FROM ownbucket.lanes WHERE lane_id = NEW.lane_id;
	RETURN NULL;
END $$;
CREATE FUNCTION public.witness_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.witnessed SELECT NEW.sequence, false, NEW.worker, l.leased_by
		FROM ownbucket.outbox e JOIN ownbucket.lanes l USING (lane_id) WHERE e.sequence = NEW.sequence;
	RETURN NULL;
END $$;
CREATE TRIGGER witness_completion AFTER UPDATE ON ownbucket.outbox FOR EACH ROW
	WHEN (NEW.state = 'completed') EXECUTE FUNCTION public.witness_completion();
CREATE TRIGGER witness_attempt AFTER INSERT ON ownbucket.attempts FOR EACH ROW
	EXECUTE FUNCTION public.witness_attempt();`

// newReferee begins before any worker does.
func newReferee(t testing.TB, url string, lease time.Duration) *referee {
	t.Helper()
	db, err := database.Open(t.Context(), url, database.DefaultSchema)
	if err != nil {
		t.Fatal(err)
	}
	r := &referee{t: t, db: db, lease: lease}
	t.Cleanup(func() {
		r.watching.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.ExecContext(t.Context(), witness); err != nil {
		t.Fatal(err)
	}
	return r
}

// watch looks at the lanes until the context ends, and tells how many events
// have ended.
func (r *referee) watch(ctx context.Context, finished func(int64)) {
	r.watching.Go(func() {
		const interval = 250 * time.Millisecond
		tick := time.NewTicker(interval)
		defer tick.Stop()
		seen := map[lapsed]int{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			seen = r.lookForStuckLanes(ctx, seen)
			var n int64
			if err := r.db.GetContext(ctx, &n, r.db.SQL(
				`SELECT count(*) FROM {outbox} WHERE finished_at IS NOT NULL`)); err == nil {
				finished(n)
			}
		}
	})
}

// lapsed is a lease that ended long ago.
type lapsed struct {
	LaneID int64 `db:"lane_id"`
	Token  int64 `db:"lease_token"`
}

// lookForStuckLanes looks for lanes that nobody has taken over, although their
// leases ended long ago and somebody works: who renews other lanes' leases. A
// machine that stood still shows the same for a moment, hence several sights.
func (r *referee) lookForStuckLanes(ctx context.Context, before map[lapsed]int) map[lapsed]int {
	const sights = 8
	var found []lapsed
	if err := r.db.SelectContext(ctx, &found, r.db.SQL(`
		SELECT lane_id, lease_token FROM {lanes} WHERE leased_by IS NOT NULL AND leased_until < {now} - ?
		AND EXISTS (SELECT 1 FROM {lanes} WHERE leased_by IS NOT NULL AND leased_until > {now})`),
		2*r.lease.Microseconds()); err != nil {
		return nil // the database may be what is in trouble
	}
	seen := make(map[lapsed]int, len(found))
	for _, l := range found {
		seen[l] = before[l] + 1
		if seen[l] == sights {
			r.t.Errorf("nobody takes over lane %d, whose lease ended more than %s ago; open transactions stand after: %q",
				l.LaneID, 2*r.lease, r.openTransactions(ctx))
		}
	}
	return seen
}

// openTransactions are the last statements of those that wait for their worker.
func (r *referee) openTransactions(ctx context.Context) (last []string) {
	_ = r.db.SelectContext(ctx, &last, `SELECT query FROM pg_stat_activity
		WHERE datname = current_database() AND state LIKE 'idle in transaction%'`)
	return last
}

// count counts rows that shouldn't be, or whatever else the query counts.
func (r *referee) count(query string) (n int) {
	r.t.Helper()
	if err := r.db.GetContext(r.t.Context(), &n, r.db.SQL(query)); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// none expects that a query finds no row, and shows those that it finds.
func (r *referee) none(what, query string) {
	r.t.Helper()
	var found []string
	if err := r.db.SelectContext(r.t.Context(), &found, r.db.SQL(`SELECT x::text FROM (`+query+`) x`)); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	if len(found) > 0 {
		r.t.Errorf("%d %s: %s", len(found), what, shorten(fmt.Sprint(found)))
	}
}

// expectAllEnded expects each published event to have been completed, once, by
// who held its lane. What waited in an environment when it was deleted is
// superseded, or skipped since its copy was given up; and a media that is
// deleted in an environment before its copy could join needs no work.
func (r *referee) expectAllEnded(published int64) {
	r.t.Helper()
	if n := r.count(`SELECT count(*) FROM {outbox}`); int64(n) != published {
		r.t.Errorf("the outbox has %d events, %d were published", n, published)
	}
	r.none("events that were not done", `
		SELECT sequence, service_id, environment_id, type, media_id, state, outcome, error FROM {outbox} e
		WHERE NOT (state = 'completed' AND (outcome = 'done' OR EXISTS (
			SELECT 1 FROM {outbox} d WHERE d.type = 'EnvironmentDeleted' AND d.sequence > e.sequence
			AND (d.service_id, d.environment_id) = (e.service_id, e.environment_id))
			OR outcome = 'skipped' AND type = 'MediaDeleted' AND environment_id <> ''))`)
	r.none("events that were completed more than once", `
		SELECT sequence, count(*), array_agg(worker), array_agg(holder) FROM public.witnessed WHERE completed
		GROUP BY sequence HAVING count(*) > 1`)
	r.none("ends written by a worker that didn't hold the lane",
		`SELECT * FROM public.witnessed WHERE worker <> holder OR worker IS NOT NULL AND holder IS NULL`)
	r.none("attempts that succeeded beside another", `
		SELECT sequence, count(*) FROM {attempts} WHERE error_class IS NULL GROUP BY sequence HAVING count(*) > 1`)
	r.none("holds that outlast their events", `SELECT * FROM {holds}`)
}

// expectNoAttemptLost expects that no event paid for what befell its worker.
func (r *referee) expectNoAttemptLost() {
	r.t.Helper()
	r.none("events that lost an attempt", `SELECT sequence, type, attempt_count, failure_count, lapse_count
		FROM {outbox} WHERE attempt_count <> 1 AND outcome <> 'superseded' OR failure_count > 0`)
	r.none("attempts that failed", `SELECT * FROM {attempts} WHERE error_class <> 'interrupted'`)
}

// expectNoLease expects that whoever worked gave everything back.
func (r *referee) expectNoLease() {
	r.t.Helper()
	r.none("lanes still leased", `SELECT lane_id, leased_by FROM {lanes} WHERE leased_by IS NOT NULL`)
	r.none("items still leased", `SELECT * FROM {copy_items} WHERE leased_until IS NOT NULL AND state = 'owed'`)
	r.none("events still running", `SELECT sequence, type FROM {outbox} WHERE state = 'running'`)
}

// stood is a live row of the ledger.
type stood struct {
	Environment string `db:"environment_id"`
	Media       string `db:"media_id"`
	Key         string `db:"object_key"`
	Version     int64  `db:"version"`
	ContentType string `db:"content_type"`
	Size        int64  `db:"size"`
	ETag        string `db:"etag"`
}

// expectLedger compares the ledger of a service with the models of its places,
// and the ETags with the bucket's.
func (r *referee) expectLedger(service string, etags map[string]string, places []*place) {
	r.t.Helper()
	var rows []stood
	if err := r.db.SelectContext(r.t.Context(), &rows, r.db.SQL(`
		SELECT environment_id, media_id, object_key, version, content_type, size, etag
		FROM {media_objects} JOIN {lanes} USING (lane_id)
		WHERE service_id = ? AND object_key IS NOT NULL`), service); err != nil {
		r.t.Fatal(err)
	}
	got, want := make(map[string]stood), make(map[string]stood)
	for _, row := range rows {
		got[row.Environment+"/"+row.Media] = row
	}
	for _, p := range places {
		for media, s := range p.media {
			key := p.prefix() + s.name
			want[p.environment+"/"+media] = stood{
				Environment: p.environment, Media: media, Key: key, Version: s.version.Micros(),
				ContentType: s.content.kind, Size: s.content.size, ETag: etags[key],
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("the ledger of %s (-want +got):\n%s", service, shorten(diff))
	}
}
