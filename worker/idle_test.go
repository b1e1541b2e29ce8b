package worker_test

import (
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/worker"
)

// Two services share a bucket and prefix. One waits for a key that the other gives
// up only with a retry.
func TestAWorkerIsIdleWhileAnotherServicesRetryLiesInTheFuture(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := stage.New(t, db)
		s.Config.RetryBase, s.Config.RetryAttempts = 24*time.Hour, 25
		p := s.Customer("SERVICE#1", "customer-bucket", "media")
		other := p.Neighbour("SERVICE#2")
		p.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		fault := s.AWS.Inject(awslocal.Rule{API: "s3:DeleteObject", Status: 409, Code: "ConditionalRequestConflict"})
		deletion := p.Publish(s.Delete("m1", "a.txt"))
		s.Work()
		upload := other.Publish(s.Upload("m1", "a.txt", "two"))
		w, err := worker.New(t.Context(), s.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.RunUntilIdle(t.Context(), 30*time.Second); err != nil {
			t.Fatalf("%v\n%s", err, s.Dump())
		}
		if d, u := s.Event(deletion), s.Event(upload); d.State != "retryable" || u.State != "available" {
			t.Errorf("the deletion is %s and the upload %s\n%s", d, u, s.Dump())
		}

		// Once the retry is due, both are waited for.
		fault.Remove()
		if _, err := db.ExecContext(t.Context(), db.SQL(`UPDATE {outbox} SET next_attempt_at = 0 WHERE state = 'retryable'`)); err != nil {
			t.Fatal(err)
		}
		s.Work()
		if d, u := s.Event(deletion), s.Event(upload); d.String() != "completed done" || u.String() != "completed done" {
			t.Errorf("the deletion is %s and the upload %s\n%s", d, u, s.Dump())
		}
	})
}
