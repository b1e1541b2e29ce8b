package environment_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
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

// Who takes over from a worker that died while it deleted an environment begins
// with what waited before the deletion, some of which needs what is gone.
func TestADeletionThatWasCutOffSupersedesWhatNeedsWhatIsGone(t *testing.T) {
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
			ids = append(ids, dev.Publish(deleted())) // the worker knows of it when the rename runs already
			s.Await("the deletion in its lane", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND lane_id IS NOT NULL`, ids[1]))
		}})
		s.Work()
		s.ends(ids, "completed superseded", "completed done")
		s.holds(map[string]string{"media/a.txt": "one"})
	})
}

// halfDeleted makes a deletion of dev that has deleted something, failed, and waits
// for its retry, and an earlier upload to dev whose own retry is due meanwhile: it
// doesn't start.
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
	refused.Remove()
	s.AWS.Inject(awslocal.Rule{API: "s3:DeleteObjects", Times: 1, Before: func(context.Context, awslocal.Call) {
		if !s.has(`SELECT 1 FROM {lanes} WHERE emptying_sequence IS NOT NULL`)() {
			s.t.Error("who took over now wouldn't know that the deletion has begun")
		}
	}})
	s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2", Skip: 1}, 1))
	deletion = dev.Publish(deleted())
	s.Work()
	s.ends([]string{upload, deletion}, "retryable conflict", "retryable conflict")
	s.holds(map[string]string{"media/a.txt": "one"})
	s.startAgain(upload, "0")
	s.Work()
	s.ends([]string{upload, deletion}, "available conflict", "retryable conflict")
	return upload, deletion
}

func TestWhatADeletionWillSupersedeDoesNotStartOnceItHasBegun(t *testing.T) {
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

func TestWhatADeletionHasKeptFromStartingRunsWhereTheDeletionIsGivenUp(t *testing.T) {
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
				s.ends([]string{upload, deletion}, "completed done", c.end)
				s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "two"})
			})
		})
	}
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
	if got := s.Event(ids[0]).String(); got != "available" {
		t.Errorf("the upload is %s", got)
	}
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
			s.get(&left, `SELECT count(*) FROM {copy_items} WHERE state = 'owed'`)
			return left == hang.Hits()
		})
		s.ends(ids, "completed done", "available")
		hang.Remove()
		s.Await("the deletion", func() bool { return s.Event(ids[1]).String() == "completed done" })
		s.holds(want)
		if n := s.effects("s3:CopyObject", directory("dev")+"9.txt"); n > 1 {
			t.Errorf("copied %d times", n)
		}
		s.nothingRefused()
	})
}

// An event that waited for a copy must not run without it because the deletion
// has cancelled that, and yet waits for another.
func TestDeletionThatHasBegunSupersedesWhatWaitedForACopy(t *testing.T) {
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
				ids := s.publish(at{dev, created("dev", "")}, at{dev, upload(s)})
				s.Await("the copies", func() bool { return hang.Hits() > 0 && s.effects("s3:CopyObject", directory("dev")+"a.txt") == 1 })
				s.Await("an event that waits", func() bool { return s.startAgain(ids[1], "{now} + 3600000000") })

				ids = append(ids, dev.Publish(deleted()))
				s.exec(`UPDATE {copy_items} SET leased_until = 0, next_attempt_at = {now} + 3600000000 WHERE media_id = 'm1'`)
				s.Await("the deletion having begun", func() bool {
					var state string
					s.get(&state, `SELECT state FROM {copy_items} WHERE media_id = 'm1'`)
					return state == "cancelled"
				})
				s.startAgain(ids[1], "0")
				s.Await("another attempt of the event", func() bool {
					var over bool
					s.get(&over, `SELECT coalesce(next_attempt_at, 0) > 0 OR finished_at IS NOT NULL FROM {outbox}
						WHERE CAST(event_id AS text) = ?`, ids[1])
					return over
				})
				hang.Remove()
				s.ends(ids, "completed done", "completed superseded", "completed done")
				s.holds(want)
				s.nothingRefused()
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
		s.ends(ids, "completed done", "completed superseded", "completed done", "completed done")
		s.holds(map[string]string{directory("stg") + "a.txt": "one", directory("stg") + "b.txt": "old"})
		s.nothingRefused()
	})
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
		ids := s.publish(at{dev, upload}, at{dev, deleted()})
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
