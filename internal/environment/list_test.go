package environment_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/environment"
)

// listed compares all environments that were made from others.
func (s *scene) listed(want ...environment.Listed) {
	s.t.Helper()
	got, err := s.environments().List(s.t.Context(), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	if want == nil {
		want = []environment.Listed{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("environments (-want +got):\n%s\n%s", diff, s.Dump())
	}
}

func listedAs(name, state string, total, done, failed int64) environment.Listed {
	return environment.Listed{ServiceID: service, EnvironmentID: name, Directory: bucket.Directory(serviceID(name)),
		State: state, Total: total, Done: done, Failed: failed}
}

func TestEnvironmentIsListedFromItsCopyToItsDeletion(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.listed()
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		stranger := directory("dev") + "b.txt"
		if _, err := s.AWS.PutDirect(store, stranger, []byte("theirs"), awslocal.Stranger{}); err != nil {
			t.Fatal(err)
		}
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		s.publish(at{dev, created("dev", "")}, at{stg, created("stg", "")})
		s.Work()
		s.listed(listedAs("dev", "incomplete", 2, 1, 1), listedAs("stg", "complete", 2, 2, 0))
		first, err := s.environments().List(t.Context(), 1)
		if err != nil || len(first) != 1 || first[0].EnvironmentID != "dev" {
			t.Errorf("a list of at most one: %+v, %v", first, err)
		}
		s.copied("dev", "incomplete", 1, map[string]string{"m2": "key_taken"})

		s.AWS.DeleteDirect(store, stranger)
		if n := s.retryFailed("dev"); n != 1 {
			t.Errorf("retried %d items, want 1", n)
		}
		s.listed(listedAs("dev", "running", 2, 1, 0), listedAs("stg", "complete", 2, 2, 0))
		s.Work()
		s.listed(listedAs("dev", "complete", 2, 2, 0), listedAs("stg", "complete", 2, 2, 0))
		if n := s.retryFailed("dev"); n != 0 {
			t.Errorf("retried %d items where none had failed", n)
		}
		s.audited("environments retry-failed", `service "SERVICE#1", environment "dev"`, 1)

		s.pause(dev)
		s.publish(at{dev, deleted()})
		s.Work()
		s.listed(listedAs("dev", "deleting", 2, 2, 0), listedAs("stg", "complete", 2, 2, 0))
		if _, err := s.environments().RetryFailed(t.Context(), service, "dev", "test", "mended", false); err == nil {
			t.Error("media were owed to an environment that is being deleted")
		}
		s.resume(dev)
		s.Work()
		s.listed(listedAs("stg", "complete", 2, 2, 0))
		if _, err := s.environments().Show(t.Context(), service, "dev"); !errors.Is(err, environment.ErrNotFound) {
			t.Errorf("show a deleted environment: %v", err)
		}
		if _, err := s.environments().RetryFailed(t.Context(), service, "dev", "test", "mended", false); !errors.Is(err, environment.ErrNotFound) {
			t.Errorf("retry a deleted environment: %v", err)
		}
	})
}

// audited expects exactly one row of an action, which says who, why and how
// many.
func (s *scene) audited(action, target string, changed int64) {
	s.t.Helper()
	type row struct {
		Actor   string `db:"actor"`
		Target  string `db:"target"`
		Reason  string `db:"reason"`
		Changed int64  `db:"changed"`
	}
	var got []row
	if err := s.DB.SelectContext(s.t.Context(), &got, s.DB.SQL(`
		SELECT actor, target, reason, changed FROM {audit} WHERE action = ?`), action); err != nil {
		s.t.Fatal(err)
	}
	if diff := cmp.Diff([]row{{"test", target, "mended", changed}}, got); diff != "" {
		s.t.Errorf("audit of %s (-want +got):\n%s", action, diff)
	}
}
