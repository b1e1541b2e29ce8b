package environment_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// has tells whether a query finds something.
func (s *scene) has(query string, args ...any) func() bool {
	return func() (found bool) {
		s.get(&found, `SELECT EXISTS (`+query+`)`, args...)
		return found
	}
}

// lostCopy makes a copy take effect without an answer that says so.
func (s *scene) lostCopy(key string) {
	s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Key: key, Times: 1, AfterEffect: true, Status: 409, Code: "OperationAborted"})
}

func TestAReplayedDeletionLeavesWhatWasMadeSince(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		rule := s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2"}, 0))
		deletion := dev.Publish(deleted())
		s.Start()
		s.Await("its death", func() bool { return s.Event(deletion).State == "dead" })
		rule.Remove()
		ids := s.publish(at{dev, created("dev", "")}, at{dev, s.Upload("m2", "b.txt", "of the new dev")})
		s.Await("the new environment", func() bool { return s.Event(ids[1]).State == "completed" && s.state("dev") == "complete" })
		before := s.prod.Contents()
		s.retry(deletion)
		s.ends([]string{deletion}, "completed superseded")
		if _, err := s.Settings.Show(t.Context(), service, "dev"); err != nil {
			t.Errorf("settings of dev: %v", err)
		}
		s.holds(before)
	})
}

func TestAReplayedDeletionLeavesWhatWasUploadedSince(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.own(dev, "media") // it was never made from another
		deletion := s.deadDeletion(dev)
		dev.Publish(s.Upload("m1", "a.txt", "since"))
		s.Work()
		s.retry(deletion)
		s.Work()
		s.ends([]string{deletion}, "completed superseded")
		s.holds(map[string]string{directory("dev") + "a.txt": "since"})
	})
}

// An event that waits for media of a paused source does so for a minute, and the
// deletion waits for it: another environment's copy must contain what it does.
func TestADeletionWaitsForAnEventThatACopyMustContain(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		s.prod.Publish(s.Upload("m2", "c.txt", "two"))
		s.Work()
		s.pause(s.prod)
		ids := s.publish(
			at{s.prod, s.Upload("m1", "a.txt", "one")}, // held
			at{dev, created("dev", "")},
			at{dev, s.Rename("m1", "a.txt", "b.txt")},
			at{stg, created("stg", "dev")},
			at{dev, deleted()})
		s.Start()
		s.Await("the rename waiting", s.has(`SELECT 1 FROM {copy_items} JOIN {outbox} ON sequence = copy_sequence
			WHERE event_id = ? AND copy_items.state = 'waiting' AND first_failed_at IS NOT NULL`, ids[1]))
		s.Await("the deletion waiting", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND next_attempt_at IS NOT NULL`, ids[4]))
		s.ends(ids, "available", "completed done", "available", "completed done", "available")
		s.aMinutePasses()
		s.ends([]string{ids[2], ids[4]}, "completed skipped", "completed done")
		s.Await("the copy", func() bool { return s.state("stg") == "incomplete" })
		s.copied("stg", "incomplete", 1, map[string]string{"m1": "source_changed"})
		s.holds(map[string]string{"media/c.txt": "two", directory("stg") + "c.txt": "two"})
	})
}

// aMinutePasses since somebody began to wait for items.
func (s *scene) aMinutePasses() {
	s.t.Helper()
	s.exec(`UPDATE {copy_items} SET first_failed_at = first_failed_at - 61000000 WHERE first_failed_at IS NOT NULL`)
}

// wentPast makes an event of dev that went past an item, and died for the lack of
// its source, which mend supplies.
func (s *scene) wentPast(name string) (id string, mend func()) {
	s.t.Helper()
	dev := s.prod.In("dev")
	s.pause(s.prod)
	upload := s.Upload("m1", name, "of dev")
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	upload.Version = s.Version()
	s.RemoveFile(upload.Source)
	ids := s.publish(at{dev, created("dev", "")}, at{dev, upload})
	s.Work()
	s.ends(ids, "completed done", "dead source_gone")
	return ids[1], func() { s.PutFile(upload.Source, "of dev") }
}

func TestAReplayedEventWaitsForTheCopyThatItWentPast(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		id, mend := s.wentPast("b.txt")
		hang := s.AWS.Inject(hanging(copiesTo("dev")))
		s.Start()
		s.resume(s.prod)
		s.Await("the copy", func() bool { return hang.Hits() > 0 })
		mend()
		s.retry(id)
		s.Await("the replay waiting, or over", s.has(`SELECT 1 FROM {outbox}
			WHERE event_id = ? AND (next_attempt_at IS NOT NULL OR state = 'completed')`, id))
		hang.Remove()
		s.ends([]string{id}, "completed done")
		s.Await("the copy's end", func() bool { return s.state("dev") == "complete" })
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "of dev"})
		if row := s.prod.In("dev").Ledger("m1"); row == nil || row.Key == nil || *row.Key != directory("dev")+"b.txt" {
			t.Errorf("the ledger has %+v", row)
		}
	})
}

// The snapshot was taken while the event was dead: it has the media as it was before.
func TestAReplayedEventDoesNotGoPastACopyThatALaterSnapshotAwaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		id, mend := s.wentPast("b.txt")
		s.publish(at{s.prod.In("test"), created("test", "dev")})
		s.Work()
		mend()
		s.retry(id)
		s.Work()
		s.ends([]string{id}, "available")
		s.resume(s.prod)
		s.Work()
		s.ends([]string{id}, "completed done")
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "of dev", directory("test") + "a.txt": "one"})
		s.copied("test", "complete", 1, nil)
		s.nothingRefused()
	})
}

func TestAReplayedEventSettlesWhatTheCopyThatItWentPastHasLeft(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a.txt", "b.txt"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				s.slowRetries()
				id, mend := s.wentPast(name)
				s.lostCopy(directory("dev") + "a.txt")
				s.resume(s.prod)
				s.Work()
				mend()
				s.retry(id)
				s.Work()
				s.ends([]string{id}, "completed done")
				s.exec(`UPDATE {copy_items} SET next_attempt_at = 0`)
				s.Work()
				s.prod.In("dev").Publish(s.Upload("m1", name, "of dev again"))
				s.Work()
				s.holds(map[string]string{"media/a.txt": "one", directory("dev") + name: "of dev again"})
				s.copied("dev", "complete", 1, nil)
			})
		})
	}
}

// An event that runs began without the copy that is to be tried again.
func TestAMediaWithAnUnfinishedEventIsNotCopiedAgainYet(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]func(s *scene) (at, awslocal.Rule){
		"in the source": func(s *scene) (at, awslocal.Rule) {
			return at{s.prod, s.Upload("m1", "a.txt", "much later")},
				awslocal.Rule{API: "s3:PutObject", Key: "media/a.txt", Times: 1, AfterEffect: true, Hang: true}
		},
		"in the target": func(s *scene) (at, awslocal.Rule) {
			return at{s.prod.In("dev"), s.Upload("m1", "b.txt", "of dev")},
				awslocal.Rule{API: "s3:PutObject", Key: directory("dev") + "b.txt", Times: 1, Hang: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				s.prod.Publish(s.Upload("m1", "a.txt", "old"))
				s.putStranger(directory("dev") + "a.txt")
				s.publish(at{s.prod.In("dev"), created("dev", "")})
				s.Work()
				s.copied("dev", "incomplete", 0, map[string]string{"m1": "key_taken"})
				s.AWS.DeleteDirect(store, directory("dev")+"a.txt")
				event, rule := in(s)
				hang := s.AWS.Inject(rule)
				s.Start()
				id := s.publish(event)[0]
				for _, begun := range []func() bool{
					func() bool { return hang.Hits() == 1 }, // at first it is in its worker's memory alone
					s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND lane_id IS NOT NULL`, id),
				} {
					s.Await("the event", begun)
					if n := s.retryFailed("dev"); n != 0 {
						t.Errorf("%d are copied again", n)
					}
				}
				hang.Remove()
				s.ends([]string{id}, "completed done")
				if n := s.retryFailed("dev"); n != 1 {
					t.Errorf("%d are copied again after the event, want 1", n)
				}
			})
		})
	}
}

// What an item is to be copied from may change after an attempt of it.
func TestAnItemThatLooksAgainKnowsWhatItMayHaveWritten(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a.txt", "z.txt"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, dbtest.PostgreSQL(t))
			s.slowRetries()
			s.prod.Publish(s.Upload("m1", "a.txt", "old"))
			s.Work()
			late, err := s.DB.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			s.publishIn(late, at{s.prod.In("dev"), created("dev", "")})
			hang := s.AWS.Inject(awslocal.Rule{API: "s3:PutObject", Key: "media/" + name, Times: 1, Hang: true})
			s.lostCopy(directory("dev") + "a.txt")
			s.Start()
			id := s.prod.Publish(s.Upload("m1", name, "new"))
			s.Await("the upload", func() bool { return hang.Hits() == 1 })
			if err := late.Commit(); err != nil {
				t.Fatal(err)
			}
			s.Await("a copy whose answer is lost", s.has(`SELECT 1 FROM {copy_items}
				WHERE media_id = 'm1' AND failure_count > 0 AND may_have_written AND leased_until IS NULL`))
			hang.Remove()
			s.ends([]string{id}, "completed done")
			s.Await("the copy", func() bool { return s.state("dev") != "running" })
			s.copied("dev", "complete", 1, nil)
			again := s.prod.In("dev").Publish(s.Upload("m1", name, "of dev")) // settles what is left
			s.ends([]string{again}, "completed done")
			s.holds(map[string]string{"media/" + name: "new", directory("dev") + name: "of dev"})
		})
	}
}

func TestADiscardedCreationNotesWhatItsCopyMayHaveWritten(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	s.slowRetries()
	dev := s.prod.In("dev")
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	s.own(dev, "media")
	s.Work()
	// The end of the creation can't be written.
	s.exec(`CREATE FUNCTION {refuse}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''refused''; END'`)
	s.exec(`CREATE TRIGGER refuse BEFORE UPDATE ON {outbox} FOR EACH ROW
		WHEN (NEW.state = 'completed' AND NEW.type = 'EnvironmentCreated') EXECUTE FUNCTION {refuse}()`)
	hang := s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "a.txt", Times: 1, AfterEffect: true, Hang: true})
	stop := s.Start()
	creation := dev.Publish(created("dev", ""))
	s.Await("the copy", func() bool { return hang.Hits() == 1 && s.Event(creation).State == "retryable" })
	s.discard(creation)
	hang.Remove()
	stop()
	upload := dev.Publish(s.Upload("m1", "a.txt", "of dev"))
	s.Work()
	s.ends([]string{upload}, "completed done")
	s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "of dev"})
}

func TestACreationIsRetriedOnceItsSourceHasSettings(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		other := s.Customer("service-2", "bucket-2", "media")
		settings := s.without(other)
		change := integration.Change{Bucket: &settings.Bucket, Region: &settings.Region, RoleARN: &settings.RoleARN,
			ExternalID: &settings.ExternalID, Prefix: &settings.Prefix}
		// The service uses the feature in one environment, but not in production.
		prod := *other
		prod.Service = "service-3"
		id := "service-3-side"
		side := change
		side.EnvironmentServiceID = &id
		prod.In("side").Set(side)
		creation := prod.In("dev").Publish(created("dev", ""))
		s.Work()
		s.ends([]string{creation}, "dead no_integration")
		prod.Set(change)
		s.retry(creation)
		s.Work()
		s.ends([]string{creation}, "completed done")
	})
}

func TestWhatADiscardedDeletionHasCancelledIsCopiedByAnotherCreation(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		rule := s.AWS.Inject(conflicting(copiesTo("dev"), 0))
		dev.Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "running", 0, nil)
		denial := s.AWS.Inject(awslocal.Rule{API: "s3:ListObjectsV2", Status: 403, Code: "AccessDenied"})
		deletion := dev.Publish(deleted())
		s.Start()
		s.Await("the denial", func() bool { return dev.Integration().State == integration.Blocked })
		s.Await("the discard", func() bool { // once its worker has given the lane back
			counts, err := outbox.New(s.DB, s.environments()).Discard(t.Context(), outbox.Filter{EventIDs: []string{deletion}},
				outbox.Action{Actor: "test", Reason: "test"})
			return err == nil && counts.Changed == 1
		})
		if got := s.state("dev"); got != "" {
			t.Errorf("the copy is %s, want none", got)
		}
		denial.Remove()
		rule.Remove()
		s.Await("the probe", func() bool { return dev.Integration().State == integration.Active })
		dev.Publish(created("dev", ""))
		s.Await("the copies", func() bool { return s.state("dev") == "complete" })
		s.holds(map[string]string{
			"media/a.txt": "one", "media/b.txt": "two", directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two",
		})
	})
}
