package environment_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/environment"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// awaits compares what the item of a media waits for with events and copies, and
// the names that it may get.
func (s *scene) awaits(media string, ids []string, names ...string) {
	s.t.Helper()
	want := []int64{}
	for _, id := range ids {
		want = append(want, s.Event(id).Sequence)
	}
	slices.Sort(want)
	got, gotNames := []int64{}, []string{}
	if err := s.DB.SelectContext(s.t.Context(), &got, s.DB.SQL(`
		SELECT waits_for FROM {copy_waits} WHERE media_id = ? ORDER BY waits_for`), media); err != nil {
		s.t.Fatal(err)
	}
	if err := s.DB.SelectContext(s.t.Context(), &gotNames, s.DB.SQL(`
		SELECT DISTINCT file_name FROM {copy_names} WHERE media_id = ? ORDER BY file_name`), media); err != nil {
		s.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("%s waits for (-want +got):\n%s\n%s", media, diff, s.Dump())
	}
	if diff := cmp.Diff(append([]string{}, names...), gotNames); diff != "" {
		s.t.Errorf("names of %s (-want +got):\n%s", media, diff)
	}
}

func TestAnAwaitedMediaWaitsForExactlyItsEarlierEvents(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "p.txt", "two"), s.Upload("m3", "x.txt", "three"))
		s.Work()
		s.pause(s.prod)
		ids := s.publish(
			at{s.prod, s.Rename("m1", "a.txt", "b.txt")}, at{s.prod, s.Rename("m2", "p.txt", "q.txt")},
			at{s.prod, s.Upload("m1", "c.txt", "one again")}, at{s.prod, s.Upload("m2", "r.txt", "two again")},
			at{s.prod, s.Delete("m1", "c.txt")},
			at{s.prod.In("dev"), created("dev", "")},
			at{s.prod, s.Upload("m2", "s.txt", "too late")}, at{s.prod, s.Upload("m4", "d.txt", "too late")})
		s.Work()
		s.ends(ids[5:6], "completed done")
		s.awaits("m1", []string{ids[0], ids[2], ids[4]}, "a.txt", "b.txt", "c.txt")
		s.awaits("m2", []string{ids[1], ids[3]}, "p.txt", "q.txt", "r.txt")
		s.awaits("m3", nil)
		s.awaits("m4", nil)
		s.copied("dev", "running", 1, nil)

		s.resume(s.prod)
		s.Work()
		s.holds(map[string]string{"media/s.txt": "too late", "media/d.txt": "too late", "media/x.txt": "three",
			directory("dev") + "r.txt": "two again", directory("dev") + "x.txt": "three"})
		s.copied("dev", "complete", 2, nil)
		s.awaits("m1", nil)
		s.awaits("m2", nil)
		s.nothingRefused()
	})
}

// All of it is still to come when the first of them is deleted.
func TestAChainOfEnvironmentsGetsWhatItsFirstOneWasToHave(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		e1, e2 := s.prod.In("e1"), s.prod.In("e2")
		s.prod.Publish(s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.pause(s.prod)
		ids := s.publish(
			at{s.prod, s.Upload("m1", "a.txt", "one")}, at{s.prod, s.Rename("m2", "b.txt", "b2.txt")},
			at{e1, created("e1", "")}, at{e1, s.Rename("m1", "a.txt", "z.txt")}, at{e1, s.Upload("m3", "c.txt", "of e1")},
			at{e2, created("e2", "e1")}, at{e2, s.Rename("m2", "b2.txt", "b3.txt")},
			at{e1, s.Upload("m4", "d.txt", "too late")}, at{e1, deleted()})
		s.Work()
		s.ends(ids[2:3], "completed done")
		s.ends(ids[5:6], "completed done")
		s.ends(ids[8:], "available")
		s.resume(s.prod)
		s.Work()
		s.ends(ids[8:], "completed done")
		s.holds(map[string]string{"media/a.txt": "one", "media/b2.txt": "two",
			directory("e2") + "z.txt": "one", directory("e2") + "b3.txt": "two", directory("e2") + "c.txt": "of e1"})
		s.copied("e2", "complete", 3, nil)
		s.nothingRefused()
	})
}

func TestAnEventOfTheTargetWaitsForEachNameThatAnAwaitedMediaMayGet(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.pause(s.prod)
		ids := s.publish(
			at{s.prod, s.Rename("m1", "a.txt", "b.txt")}, at{s.prod, s.Upload("m1", "c.txt", "again")}, at{dev, created("dev", "")},
			at{dev, s.Upload("m2", "a.txt", "a of dev")}, at{dev, s.Upload("m3", "b.txt", "b of dev")},
			at{dev, s.Upload("m4", "c.txt", "c of dev")}, at{dev, s.Upload("m5", "d.txt", "d of dev")})
		s.Work()
		s.ends(ids[2:], "completed done", "available", "available", "available", "completed done")
		s.resume(s.prod)
		s.Work()
		s.ends(ids[2:], "completed done", "completed done", "completed done", "dead key_taken", "completed done")
		s.holds(map[string]string{"media/c.txt": "again", directory("dev") + "c.txt": "again",
			directory("dev") + "a.txt": "a of dev", directory("dev") + "b.txt": "b of dev", directory("dev") + "d.txt": "d of dev"})
		s.nothingRefused()
	})
}

// An upload or a deletion of the target leaves nothing of what would be copied.
func TestAnEventThatReplacesTheMediaMakesItsCopyUnneededUnlessItDies(t *testing.T) {
	t.Parallel()
	items := map[string]func(s *scene) (release func()){
		"owed": func(s *scene) func() {
			s.slowRetries()
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.Work()
			copies := s.AWS.Inject(conflicting(copiesTo("dev"), 0))
			s.prod.In("dev").Publish(created("dev", ""))
			s.Work()
			return func() {
				copies.Remove()
				s.exec(`UPDATE {copy_items} SET next_attempt_at = 0`)
			}
		},
		"awaited": func(s *scene) func() {
			s.pause(s.prod)
			s.publish(at{s.prod, s.Upload("m1", "a.txt", "one")}, at{s.prod.In("dev"), created("dev", "")})
			s.Work()
			return func() { s.resume(s.prod) }
		},
	}
	for name, c := range map[string]struct {
		event func(s *scene) events.Event
		ends  string
		copy  bool
		want  map[string]string
	}{
		"upload": {func(s *scene) events.Event { return s.Upload("m1", "b.txt", "of dev") }, "completed done", false,
			map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "of dev"}},
		"deletion": {func(s *scene) events.Event { return s.Delete("m1", "a.txt") }, "completed skipped", false,
			map[string]string{"media/a.txt": "one"}},
		"upload that dies": {func(s *scene) events.Event {
			upload := s.Upload("m1", "b.txt", "of dev")
			s.RemoveFile(upload.Source)
			return upload
		}, "dead source_gone", true, map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one"}},
	} {
		for state, item := range items {
			t.Run(name+" of a media that is "+state, func(t *testing.T) {
				t.Parallel()
				dbtest.Each(t, func(t *testing.T, db *database.DB) {
					s := newScene(t, db)
					release := item(s)
					id := s.prod.In("dev").Publish(c.event(s))
					s.Work()
					s.ends([]string{id}, c.ends) // without the copy
					release()
					s.Work()
					s.holds(c.want)
					if made := s.effects("s3:CopyObject", directory("dev")+"a.txt"); (made > 0) != c.copy {
						t.Errorf("%d copies were made", made)
					}
					s.copied("dev", "complete", 1, nil)
				})
			})
		}
	}
}

func TestAMediaOfAPausedSourceIsWaitedForForAMinute(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.pause(s.prod)
		ids := s.publish(at{s.prod, s.Upload("m1", "a.txt", "one")}, at{s.prod, s.Upload("m2", "b.txt", "two")},
			at{dev, created("dev", "")}, at{dev, s.Rename("m1", "a.txt", "z.txt")})
		s.Start()
		s.Await("the rename waiting", s.has(`SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND first_failed_at IS NOT NULL`))
		s.ends(ids[3:], "available")
		s.aMinutePasses()
		s.ends(ids[3:], "completed skipped")
		s.copied("dev", "running", 0, map[string]string{"m1": "source_changed"}) // no event needs m2

		s.resume(s.prod)
		s.Await("the source's events and m2", func() bool {
			return s.Event(ids[0]).State == "completed" && s.state("dev") == "incomplete"
		})
		if n := s.retryFailed("dev"); n != 1 {
			t.Errorf("%d are copied again", n)
		}
		s.Await("the copy", func() bool { return s.state("dev") == "complete" })
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two",
			directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two"})
	})
}

// The copy of another media may be at work where the clock says that it is late.
func TestAMediaOfASourceThatIsInItsTurnIsWaitedForLonger(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		hang := s.AWS.Inject(hanging(awslocal.Rule{API: "s3:PutObject", Key: "media/a.txt"}))
		s.Start()
		first := s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Await("the upload", func() bool { return hang.Hits() == 1 })
		ids := s.publish(at{s.prod, s.Rename("m1", "a.txt", "b.txt")}, at{dev, created("dev", "")}, at{dev, s.Rename("m1", "b.txt", "z.txt")})
		s.Await("the rename waiting", s.has(`SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND first_failed_at IS NOT NULL`))
		s.aMinutePasses()
		s.Await("the rename waiting on", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND next_attempt_at > {now}`, ids[2]))
		s.ends(ids[2:], "available")
		hang.Remove()
		s.ends(append(ids, first), "completed done", "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/b.txt": "one", directory("dev") + "z.txt": "one"})
	})
}

// failsLater lets a call hang until it is to fail, once.
func (s *scene) failsLater(rule awslocal.Rule) (call *awslocal.Injection, fail func()) {
	failing := make(chan struct{})
	rule = conflicting(rule, 1)
	rule.Before = func(ctx context.Context, _ awslocal.Call) {
		select {
		case <-failing:
		case <-ctx.Done():
		}
	}
	return s.AWS.Inject(rule), func() { close(failing) }
}

// looksAgain waits until an event that waits has looked again, from beginning to end.
func (s *scene) looksAgain(id string) {
	s.t.Helper()
	var before int
	s.get(&before, `SELECT wait_count FROM {outbox} WHERE event_id = ?`, id)
	s.Await("an event having looked again", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND wait_count > ?`, id, before+1))
}

// The minute is one of failing: what has waited for its turn for longer than that,
// and then failed once, is waited for.
func TestAMediaOfASourceThatHasJustFailedIsWaitedFor(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		upload, fail := s.failsLater(awslocal.Rule{API: "s3:PutObject", Key: "media/a.txt"})
		s.Start()
		first := s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Await("the upload", func() bool { return upload.Hits() == 1 })
		ids := s.publish(at{dev, created("dev", "")}, at{dev, s.Rename("m1", "a.txt", "z.txt")})
		s.Await("the rename waiting", s.has(`SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND first_failed_at IS NOT NULL`))
		s.aMinutePasses()
		fail()
		s.Await("the failure", func() bool { return s.Event(first).State == outbox.Retryable })
		s.looksAgain(ids[1])
		s.exec(`UPDATE {attempts} SET started_at = started_at - 61000000`)
		s.ends(ids[1:], "completed skipped")
		s.copied("dev", "incomplete", 0, map[string]string{"m1": "source_changed"})
	})
}

// The same holds for the event that went past an item: a retry of it is waited for.
func TestAnEventThatWentPastAnItemAndHasJustFailedIsWaitedFor(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.pause(s.prod)
		s.publish(at{s.prod, s.Upload("m1", "a.txt", "one")}, at{dev, created("dev", "")})
		upload, fail := s.failsLater(awslocal.Rule{API: "s3:PutObject", Key: directory("dev") + "b.txt"})
		s.Start()
		past := dev.Publish(s.Upload("m1", "b.txt", "of dev"))
		s.Await("the upload", func() bool { return upload.Hits() == 1 })
		waits := dev.Publish(s.Upload("m2", "a.txt", "two"))
		s.Await("the other one waiting", s.has(`SELECT 1 FROM {copy_items} WHERE first_failed_at IS NOT NULL`))
		s.aMinutePasses()
		fail()
		s.Await("the failure", func() bool { return s.Event(past).State == outbox.Retryable })
		s.looksAgain(waits)
		s.exec(`UPDATE {attempts} SET started_at = started_at - 61000000`)
		s.ends([]string{waits}, "completed done")
	})
}

// What the media waited for ends between the two looks of an event that has waited for
// it for too long.
func TestAMediaThatHasJustBecomeReadyIsNotGivenUp(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	dev := s.prod.In("dev")
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	s.Work()
	s.pause(s.prod)
	ids := s.publish(at{s.prod, s.Rename("m1", "a.txt", "b.txt")}, at{dev, created("dev", "")}, at{dev, s.Rename("m1", "a.txt", "z.txt")})
	s.Start()
	s.Await("the rename waiting", s.has(`SELECT 1 FROM {copy_items} WHERE state = 'waiting' AND first_failed_at IS NOT NULL`))

	tx, err := s.DB.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), s.DB.SQL(`LOCK TABLE {attempts} IN ACCESS EXCLUSIVE MODE`)); err != nil {
		t.Fatal(err)
	}
	s.aMinutePasses()
	s.Await("the second look", s.has(`SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{attempts}'::regclass`))
	s.discard(ids[0])
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.ends(ids[1:], "completed done", "completed done")
	s.copied("dev", "complete", 1, nil)
	s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "z.txt": "one"})
}

func TestDeletionOfAnEnvironmentThatNoCopyMadeIsListed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.own(dev, "media")
		dev.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.listed()
		s.pause(dev)
		dev.Publish(deleted())
		s.listed(listedAs("dev", "deleting", 0, 0, 0))
		s.Work()
		s.listed(listedAs("dev", "deleting", 0, 0, 0))
		if got := s.shown("dev"); got.State != "deleting" || len(got.Failures) > 0 {
			t.Errorf("it is shown as %+v", got)
		}
		s.resume(dev)
		s.Work()
		s.listed()
		s.holds(map[string]string{})
	})
}

// A settlement in either environment, a snapshot and a deletion's beginning come
// before it or find what is owed again.
func TestCopyingAgainWaitsForWhoeverHasEitherLane(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "dev"} {
		t.Run("lane of "+name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, dbtest.PostgreSQL(t))
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.putStranger(directory("dev") + "a.txt")
			s.prod.In("dev").Publish(created("dev", ""))
			s.Work()
			tx, err := s.DB.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }() // it may have ended
			if _, err := tx.ExecContext(t.Context(), s.DB.SQL(`
				SELECT 1 FROM {lanes} WHERE environment_id = ? FOR KEY SHARE`), name); err != nil {
				t.Fatal(err)
			}
			type outcome struct {
				retried environment.Retried
				err     error
			}
			ended := make(chan outcome, 1)
			go func() {
				retried, err := s.environments().RetryFailed(t.Context(), service, "dev", "test", "mended", false)
				ended <- outcome{retried, err}
			}()
			s.Await("the lock", s.has(`SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`))
			s.copied("dev", "incomplete", 0, map[string]string{"m1": "key_taken"})
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			select {
			case o := <-ended:
				if o.err != nil || o.retried.Changed != 1 {
					t.Errorf("%+v, %v", o.retried, o.err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it waits although nobody has the lane")
			}
		})
	}
}

// A copy that its source awaits brings nothing there. What the source has from
// before its deletion, which is yet to run, isn't what the next environment gets.
func TestAMediaFromBeforeAPendingDeletionOfTheSourceIsNotCopied(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, test := s.prod.In("dev"), s.prod.In("test")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.publish(at{dev, created("dev", "")})
		s.Work()
		s.pause(s.prod)
		s.pause(dev)
		ids := s.publish(at{s.prod, s.Delete("m1", "a.txt")}, at{dev, deleted()}, at{dev, created("dev", "")}, at{test, created("test", "dev")})
		s.Work()
		s.awaits("m1", []string{ids[0], ids[2]}, "a.txt")
		s.resume(s.prod)
		s.Work()
		s.awaits("m1", nil)
		s.resume(dev)
		s.Work()
		s.holds(map[string]string{"media/b.txt": "two", directory("dev") + "b.txt": "two", directory("test") + "b.txt": "two"})
		s.copied("test", "complete", 1, nil)
		s.nothingRefused()
	})
}
