package environment_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// What is being copied ends first, and nothing else of the copy begins.
func TestTargetDeletedWhileItsCopyRuns(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		for i := range 10 {
			s.prod.Publish(s.Upload(fmt.Sprint("m", i), fmt.Sprint(i, ".txt"), "x"))
		}
		s.Work()
		want := s.prod.Contents()
		hang := s.AWS.Inject(hanging(copiesTo("dev")))
		s.Start()
		ids := s.publish(at{dev, created("dev", "")})
		s.Await("copies", func() bool { return hang.Hits() > 0 })
		ids = append(ids, dev.Publish(deleted()))
		s.Await("the deletion waiting for what is being copied", func() bool {
			var left int
			s.get(&left, `SELECT count(*) FROM {copy_items} WHERE state = 'owed' AND leased_until IS NULL AND next_attempt_at > {now}`)
			return left == 10-hang.Hits()
		})
		begun := hang.Hits()
		s.ends(ids, "completed done", "available")
		hang.Remove()
		s.Await("the deletion", func() bool { return s.Event(ids[1]).String() == "completed done" })
		s.holds(want)
		copied := 0
		for i := range 10 {
			copied += s.effects("s3:CopyObject", fmt.Sprint(directory("dev"), i, ".txt"))
		}
		if copied > begun {
			t.Errorf("%d media were copied, and %d were being copied when the deletion came", copied, begun)
		}
		s.nothingRefused()
	})
}

// An event that waited for a copy must not run without it because the deletion
// has cancelled that, and yet waits for another.
func TestDeletionCancelsNothingWhileSomebodyIsAtWorkOnACopy(t *testing.T) {
	t.Parallel()
	for of, upload := range map[string]func(*scene) events.Event{
		"of the media": func(s *scene) events.Event { return s.Upload("m1", "new.txt", "newer") },
		"of the name":  func(s *scene) events.Event { return s.Upload("m3", "a.txt", "another") },
	} {
		t.Run(of, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				dev := s.prod.In("dev")
				s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
				s.Work()
				want := s.prod.Contents()
				// Another worker has m1's copy, and dies before that is recorded.
				s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "a.txt", Times: 1, Before: func(context.Context, awslocal.Call) {
					if _, err := db.Exec(db.SQL(`UPDATE {copy_items} SET lease_token = lease_token + 1,
						leased_until = {now} + 3600000000 WHERE media_id = 'm1'`)); err != nil {
						t.Error(err)
					}
				}})
				hang := s.AWS.Inject(hanging(awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "b.txt"}))
				s.Start()
				ids := s.publish(at{dev, created("dev", "")})
				s.Await("the copies", func() bool { return hang.Hits() > 0 && s.effects("s3:CopyObject", directory("dev")+"a.txt") == 1 })
				ids = append(ids, s.publish(at{dev, upload(s)})...)
				s.Await("an event that waits", func() bool { return s.startAgain(ids[1], "{now} + 3600000000") })

				ids = append(ids, dev.Publish(deleted()))
				s.exec(`UPDATE {copy_items} SET leased_until = 0, next_attempt_at = {now} + 60000000 WHERE media_id = 'm1'`)
				s.Await("the deletion waiting", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND next_attempt_at IS NOT NULL`, ids[2]))
				s.ends(ids, "completed done", "available", "available")
				s.copied("dev", "deleting", 0, nil)
				hang.Remove()
				s.ends(ids, "completed done", "completed superseded", "completed done")
				s.holds(want)
				s.nothingRefused()
			})
		})
	}
}

func TestSourceDeletedWhileCopiesFromItAreOwed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		dev.Publish(created("dev", ""), s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		hang := s.AWS.Inject(hanging(copiesTo("stg")))
		s.Start()
		ids := s.publish(at{stg, created("stg", "dev")}, at{dev, deleted()}, at{dev, created("dev", "")})
		s.Await("copies", func() bool { return hang.Hits() > 1 })
		s.ends(ids, "completed done", "available", "available")
		hang.Remove()
		s.Await("the deletion", func() bool { return s.Event(ids[2]).String() == "completed done" })
		s.holds(map[string]string{directory("stg") + "a.txt": "one", directory("stg") + "b.txt": "two"})
		s.copied("stg", "complete", 2, nil)
		s.nothingRefused()
	})
}

func TestDeletionDoesNotWaitForATargetThatCannotTakeItsCopies(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		dev.Publish(created("dev", ""), s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.own(stg, "media")
		s.pause(stg)
		ids := s.publish(at{stg, created("stg", "dev")}, at{dev, deleted()})
		s.Work()
		s.ends(ids, "available", "completed done")
		s.resume(stg)
		s.Work()
		s.ends(ids, "completed done", "completed done")
		s.copied("stg", "incomplete", 0, map[string]string{"m1": "source_changed"})
		s.holds(map[string]string{})
	})
}

func TestDeletionLetsRunWhatACopyStillNeeds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end        func(s *scene, upload string)
		ends, into string
	}{
		"it completes":    {func(s *scene, id string) { s.AWS.ClearFaults(); s.retry(id) }, "completed done", "new"},
		"it is discarded": {(*scene).discard, "discarded conflict", "old"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				s.slowRetries()
				dev, stg := s.prod.In("dev"), s.prod.In("stg")
				dev.Publish(created("dev", ""), s.Upload("m2", "b.txt", "old"))
				s.Work()
				s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:PutObject", Key: "*/b.txt"}, 0))
				ids := s.publish(
					at{dev, s.Upload("m1", "a.txt", "one")}, at{dev, s.Upload("m2", "b.txt", "new")},
					at{stg, created("stg", "dev")}, at{dev, deleted()})
				s.Work()
				s.ends(ids, "completed done", "retryable conflict", "completed done", "available")
				c.end(s, ids[1])
				s.Work()
				s.ends(ids, "completed done", c.ends, "completed done", "completed done")
				s.holds(map[string]string{directory("stg") + "a.txt": "one", directory("stg") + "b.txt": c.into})
				s.nothingRefused()
			})
		})
	}
}
