package worker_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestEventsReachTheBucketInOrder(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := stage.New(t, db)
		p := s.Customer("SERVICE#1", "customer-bucket", "media")
		first := p.Publish(s.Upload("m1", "写真 1.txt", "one"))
		p.Publish(s.Rename("m1", "写真 1.txt", "b+c.txt"))
		p.Publish(s.Upload("m2", "写真 1.txt", "two"))
		last := p.Publish(s.Upload("m3", "gone.txt", "x"), s.Delete("m3", "gone.txt"))
		s.Work()
		if got := s.Event(first).String(); got != "completed done" {
			t.Errorf("first event: %s\n%s", got, s.Dump())
		}
		if got := s.Event(last).String(); got != "completed done" {
			t.Errorf("last event: %s\n%s", got, s.Dump())
		}
		want := map[string]string{"media/b+c.txt": "one", "media/写真 1.txt": "two"}
		if diff := cmp.Diff(want, p.Contents()); diff != "" {
			t.Error(diff)
		}
	})
}
