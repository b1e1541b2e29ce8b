package environment_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func TestDeletionTakesTheWholeDirectoryAndNothingElse(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.publish(at{s.prod.In("dev"), created("dev", "")}, at{s.prod.In("dev2"), created("dev2", "")})
		s.Work()
		beside := strings.TrimSuffix(directory("dev"), "/")
		want := map[string]string{
			"media/a.txt": "one", "media/b.txt": "two",
			directory("dev2") + "a.txt": "one", directory("dev2") + "b.txt": "two",
		}
		for _, key := range []string{beside, beside + "foo/x.txt", beside + "-", "media/x/" + directory("dev") + "y", directory("dev")[len("media/"):] + "z"} {
			s.putStranger(key)
			want[key] = "a stranger's"
		}
		for _, name := range []string{
			"", "deep/er/x", "/", "//", "a b+c%2F.txt", `"'<>&amp;`, "line\nbreak", "tab\tand\rreturn", "bell\x07", "\u2028", "写真😀.png", "が.txt", "か\u3099.txt", ".", "..",
		} {
			s.putStranger(directory("dev") + name)
		}
		id := s.prod.In("dev").Publish(deleted())
		s.Work()
		s.ends([]string{id}, "completed done")
		s.holds(want)
		s.nothingRefused()
	})
}

func TestDeletionListsAndDeletesAThousandAtATime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ objects, lists, deletes int }{
		{0, 1, 0}, {1, 2, 1}, {1000, 2, 1}, {1001, 3, 2}, {2345, 4, 3},
	} {
		t.Run(fmt.Sprint(c.objects), func(t *testing.T) {
			t.Parallel()
			s := newScene(t, dbtest.SQLite(t))
			s.AtAWS()
			dev := s.prod.In("dev")
			dev.Publish(created("dev", ""))
			s.Work()
			for i := range c.objects {
				s.putStranger(fmt.Sprintf("%s%04d.txt", directory("dev"), i))
			}
			s.AWS.ResetCounts()
			id := dev.Publish(deleted())
			s.Work()
			s.ends([]string{id}, "completed done")
			s.holds(map[string]string{})
			// The last listing finds the directory empty.
			want := map[string]int{"s3:ListObjectsV2": c.lists}
			if c.deletes > 0 {
				want["s3:DeleteObjects"] = c.deletes
			}
			if diff := cmp.Diff(want, s.AWS.BucketCounts(store)); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			s.nothingRefused()
		})
	}
}

func TestDeletionGoesOnUntilTheDirectoryIsEmpty(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		// Somebody uploads while we delete, and S3 fails in the middle.
		s.AWS.Inject(awslocal.Rule{API: "s3:DeleteObjects", Times: 1, Before: s.stranger(directory("dev") + "late.txt")})
		failed := s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2", Skip: 1}, 1))
		id := dev.Publish(deleted())
		s.Start()
		s.Await("the deletion", func() bool { return s.Event(id).String() == "completed done" })
		s.holds(map[string]string{"media/a.txt": "one"})
		if failed.Hits() != 1 {
			t.Error("the directory wasn't listed again")
		}
		s.nothingRefused()
	})
}

// The customer may have emptied the directory already.
func TestADeletionSupersedesARenameWhoseObjectIsGone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.AWS.DeleteDirect(store, directory("dev")+"a.txt")
		rename := at{dev, s.Rename("m1", "a.txt", "b.txt")}
		ids := s.publish(rename)
		s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, Before: func(context.Context, awslocal.Call) {
			ids = append(ids, dev.Publish(deleted())) // while the rename runs already
		}})
		s.Work()
		s.ends(ids, "completed superseded", "completed done")
		s.holds(map[string]string{"media/a.txt": "one"})
	})
}

// halfDeleted makes a deletion of dev that has deleted something, failed, and waits
// for its retry, and an earlier upload to dev that has waited for its own.
func (s *scene) halfDeleted() (upload, deletion string) {
	s.t.Helper()
	s.slowRetries()
	dev := s.prod.In("dev")
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	dev.Publish(created("dev", ""))
	s.Work()
	refused := s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:PutObject"}, 0))
	upload = dev.Publish(s.Upload("m2", "b.txt", "two"))
	s.Work()
	s.ends([]string{upload}, "retryable conflict")
	refused.Remove()
	s.AWS.Inject(awslocal.Rule{API: "s3:DeleteObjects", Times: 1, Before: func(context.Context, awslocal.Call) {
		if got := s.Event(upload).String(); got != "completed superseded" {
			s.t.Errorf("the upload is %s when something is deleted", got)
		}
		if !s.has(`SELECT 1 FROM {lanes} WHERE deleted_sequence > 0`)() {
			s.t.Error("a worker that takes over now doesn't know that the deletion has begun")
		}
	}})
	s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2", Skip: 1}, 1))
	deletion = dev.Publish(deleted())
	s.Work()
	s.ends([]string{upload, deletion}, "completed superseded", "retryable conflict")
	s.holds(map[string]string{"media/a.txt": "one"})
	return upload, deletion
}

func TestDeletionHasSupersededWhatWaitsWhenItDeletesSomething(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		upload, deletion := s.halfDeleted()
		s.startAgain(deletion, "0")
		s.Work()
		s.ends([]string{upload, deletion}, "completed superseded", "completed done")
		if n := s.effects("s3:PutObject", directory("dev")+"b.txt"); n > 0 {
			t.Errorf("the upload was put %d times", n)
		}
		s.holds(map[string]string{"media/a.txt": "one"})
		s.nothingRefused()
	})
}

func TestWhatADeletionHasSupersededDoesNotRunWhereTheDeletionIsGivenUp(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		giveUp func(s *scene, deletion string)
		end    string
	}{
		"discarded": {(*scene).discard, "discarded conflict"},
		"dead": {func(s *scene, deletion string) {
			s.Config.RetryAttempts = 2
			s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2"}, 1))
			s.startAgain(deletion, "0")
		}, "dead conflict"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				upload, deletion := s.halfDeleted()
				c.giveUp(s, deletion)
				s.Work()
				s.ends([]string{upload, deletion}, "completed superseded", c.end)
				later := s.prod.In("dev").Publish(s.Upload("m3", "c.txt", "three"))
				s.Work()
				s.ends([]string{later}, "completed done")
				s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "c.txt": "three"})
			})
		})
	}
}

// startAgain changes when an event that waits for its next attempt has it. It
// tells whether it does.
func (s *scene) startAgain(id, at string) bool {
	s.t.Helper()
	result, err := s.DB.ExecContext(s.t.Context(), s.DB.SQL(`UPDATE {outbox} SET next_attempt_at = `+at+`
		WHERE CAST(event_id AS text) = ? AND next_attempt_at IS NOT NULL`), id)
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		s.t.Fatal(err)
	}
	return n > 0
}

// What commits late, with a sequence before the deletion's, comes too late.
func TestADeletionThatHasBegunDoesNotWaitForWhatCommitsLate(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	dev, stg := s.prod.In("dev"), s.prod.In("stg")
	s.slowRetries()
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	dev.Publish(created("dev", ""))
	s.Work()
	late, err := s.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := s.publishIn(late, at{dev, s.Upload("m2", "b.txt", "two")}, at{stg, created("stg", "dev")})
	s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2", Skip: 1}, 1))
	deletion := dev.Publish(deleted())
	s.Work()
	s.ends([]string{deletion}, "retryable conflict")
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Start()
	s.Await("the snapshot", s.has(`SELECT 1 FROM {copies} WHERE state <> 'pending' AND sequence = (SELECT sequence
		FROM {outbox} WHERE event_id = ?)`, ids[1]))
	s.startAgain(deletion, "0")
	s.ends(append(ids, deletion), "completed superseded", "completed done", "completed done")
	s.holds(map[string]string{"media/a.txt": "one"})
	s.nothingRefused()
}

func TestEnvironmentIsCreatedAgainAfterItsDeletion(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		dev.Publish(created("dev", ""), s.Upload("m9", "own.txt", "of dev"), s.Delete("m1", "a.txt"))
		s.Work()
		ids := s.publish(at{dev, deleted()}, at{dev, created("dev", "")}, at{dev, s.Rename("m1", "a.txt", "b.txt")})
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "one"})
		if got := dev.Ledger("m9"); got != nil {
			t.Errorf("the ledger still has %+v", got)
		}
		s.copied("dev", "complete", 1, nil)
		s.nothingRefused()
	})
}

func TestDeletionRunAgainOrWithoutSettingsIsSkipped(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		ids := s.publish(at{s.prod.In("never"), deleted()}, at{dev, created("dev", "")}, at{dev, deleted()}, at{dev, deleted()})
		s.Work()
		s.ends(ids, "completed skipped", "completed done", "completed done", "completed skipped")
		if s.state("dev") != "" {
			t.Errorf("the environment is still %s", s.state("dev"))
		}
		s.nothingRefused()
	})
}

func TestDeletionSupersedesWhatWaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		dev.Publish(created("dev", ""))
		s.Work()
		s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:PutObject"}, 0))
		ids := s.publish(at{dev, s.Upload("m1", "a.txt", "one")}, at{dev, s.Upload("m1", "b.txt", "two")})
		s.Work()
		s.ends(ids, "retryable conflict", "available")
		ids = append(ids, dev.Publish(deleted()))
		s.Work()
		s.ends(ids, "completed superseded", "completed superseded", "completed done")
		s.holds(map[string]string{})
		s.nothingRefused()
	})
}

func TestEventThatCommitsAfterALaterDeletionIsSuperseded(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	dev := s.prod.In("dev")
	dev.Publish(created("dev", ""))
	s.Work()
	late, err := s.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := s.publishIn(late, at{dev, s.Upload("m1", "a.txt", "one")}, at{dev, created("dev", "")}, at{s.prod, s.Upload("m2", "b.txt", "two")})
	ids = append(ids, dev.Publish(deleted()))
	s.Work()
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Work()
	s.ends(ids, "completed superseded", "completed superseded", "completed done", "completed done")
	s.holds(map[string]string{"media/b.txt": "two"})
	s.nothingRefused()
}

func TestDirectoryIsMadeOfTheServiceIDOnce(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.SQLite(t))
	s.prod.In("dev").Publish(created("dev", ""))
	s.Work()
	if got, want := s.prod.In("dev").Integration().Directory, bucket.Directory(serviceID("dev")); got != want {
		t.Errorf("directory %q, want %q", got, want)
	}
}

// The last guard: below no directory stands all that the customer has.
func TestDeletionWithoutADirectoryDeletesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		before := s.prod.Contents()
		s.exec(`UPDATE {integrations} SET directory = '' WHERE directory <> ''`)
		id := dev.Publish(deleted())
		s.Work()
		s.ends([]string{id}, "dead invalid_event")
		s.holds(before)
	})
}

// What is dead waits for nobody but who looks at it.
func TestDeletionLeavesDeadEventsAsTheyAre(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		dev.Publish(created("dev", ""))
		s.Work()
		upload := s.Upload("m1", "a.txt", "one")
		s.RemoveFile(upload.Source)
		ids := s.publish(at{dev, upload})
		s.Work()
		ids = append(ids, dev.Publish(deleted()))
		s.Work()
		s.ends(ids, "dead source_gone", "completed done")
		s.PutFile(upload.Source, "one")
		s.retry(ids[0])
		s.Work()
		s.ends(ids, "completed superseded", "completed done")
		s.holds(map[string]string{})
	})
}

// What is remembered of possible writes would lock the settings of the next
// environment of that name.
func TestDeletionForgetsWhatMayHaveBeenWritten(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.Config.RetryAttempts = 1
		dev := s.prod.In("dev")
		dev.Publish(created("dev", ""))
		s.Work()
		s.AWS.Inject(awslocal.Rule{API: "s3:PutObject", Times: 1, AfterEffect: true, Status: 409, Code: "OperationAborted"})
		id := dev.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.ends([]string{id}, "dead conflict")
		if !s.has(`SELECT 1 FROM {possible_writes}`)() {
			t.Error("nothing is remembered of the upload")
		}
		dev.Publish(deleted())
		s.Work()
		s.holds(map[string]string{})
		if s.has(`SELECT 1 FROM {possible_writes}`)() {
			t.Error("a possible write in the deleted environment is remembered")
		}
	})
}
