package environment_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

func TestPausedTargetLosesOnlyWhatTheSourceChanges(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"))
		s.Work()
		s.own(dev, "media")
		s.pause(dev)
		ids := s.publish(at{dev, created("dev", "")}, at{s.prod, s.Rename("m1", "a.txt", "z.txt")}, at{s.prod, s.Delete("m2", "b.txt")})
		s.Work()
		s.ends(ids, "available", "completed done", "completed done")
		s.resume(dev)
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/z.txt": "one", "media/c.txt": "three", directory("dev") + "c.txt": "three"})
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "source_changed", "m2": "source_changed"})
		s.nothingRefused()
	})
}

func TestDeniedTargetIsBlockedAndTheSourceIsNot(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.own(dev, "media")
		role := s.role(dev, "arn:aws:iam::123456789012:role/dev", awslocal.CustomerPolicy(store, "elsewhere"))
		ids := s.publish(at{dev, created("dev", "")})
		s.Work()
		s.ends(ids, "completed done")
		if got := dev.Integration().State; got != integration.Blocked {
			t.Fatalf("the target is %s, want blocked", got)
		}
		s.copied("dev", "running", 0, nil)

		ids = append(ids, s.publish(at{s.prod, s.Upload("m1", "a.txt", "changed")})...)
		s.Work()
		s.ends(ids, "completed done", "completed done")
		if got := s.prod.Integration().State; got != integration.Active {
			t.Errorf("the source is %s, want active", got)
		}
		s.copied("dev", "running", 0, map[string]string{"m1": "source_changed"})

		role.Policy = awslocal.CustomerPolicy(store, "media")
		if err := s.AWS.SetRole(role); err != nil {
			t.Fatal(err)
		}
		s.Start()
		s.Await("the copy after the probe", func() bool { return s.state("dev") == "incomplete" })
		s.holds(map[string]string{"media/a.txt": "changed", "media/b.txt": "two", directory("dev") + "b.txt": "two"})
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "source_changed"})
	})
}

func TestObjectThatAloneIsDeniedFailsAloneAfterThreeAttempts(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "a.txt", Status: 403, Code: "AccessDenied"})
		s.Start()
		s.prod.In("dev").Publish(created("dev", ""))
		s.Await("the copy", func() bool { return s.state("dev") == "incomplete" })
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "denied"})
		if got := s.prod.In("dev").Integration().State; got != integration.Active {
			t.Errorf("the target is %s, want active", got)
		}
		if n := s.AWS.Counts()["s3:PutObject"]; n != 2+1 {
			t.Errorf("two uploads and the probes put %d objects, want one probe", n)
		}
	})
}

// As of events: a probe that passed before an item had other trouble says nothing.
func TestADenialOfAnItemAfterOtherTroubleBlocksItsTargetAnew(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.Config.RetryAttempts = 100
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		copying := awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "a.txt", Times: 1, Status: 403, Code: "AccessDenied"}
		s.AWS.Inject(copying)
		copying.Times, copying.Status, copying.Code = 0, 500, "InternalError"
		trouble := s.AWS.Inject(copying)
		s.Start()
		dev.Publish(created("dev", ""))
		s.Await("the trouble after the release", s.has(`SELECT 1 FROM {copy_items} WHERE error_code = 'server_error'`))
		if err := s.AWS.ChangeRole(s.prod.Role, func(r *awslocal.Role) { r.Policy = "" }); err != nil {
			t.Fatal(err)
		}
		trouble.Remove()
		s.Await("the denial", func() bool {
			return s.state("dev") == "incomplete" || dev.Integration().State == integration.Blocked
		})
		s.copied("dev", "running", 0, nil)
	})
}

func TestFailingCopyHoldsTheSourceUpForAMinuteAtMost(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.AWS.Inject(conflicting(copiesTo("dev"), 0))
		s.prod.In("dev").Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "running", 0, nil)

		s.Start()
		id := s.prod.Publish(s.Rename("m1", "a.txt", "z.txt"))
		s.Await("the rename waiting for the copy", func() bool {
			var waits bool
			s.get(&waits, `SELECT EXISTS (SELECT 1 FROM {outbox} WHERE type = 'MediaRenamed' AND next_attempt_at IS NOT NULL)`)
			return waits
		})
		// As if the first failure had been a minute ago.
		s.exec(`UPDATE {copy_items} SET first_failed_at = first_failed_at - 60000000`)
		s.exec(`UPDATE {outbox} SET next_attempt_at = 0 WHERE next_attempt_at IS NOT NULL`)
		s.Await("the rename", func() bool { return s.Event(id).String() == "completed done" })
		s.copied("dev", "running", 0, map[string]string{"m1": "source_changed"})
	})
}

func TestUploadIntoANewEnvironmentRunsAtOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"))
		s.Work()
		hang := s.AWS.Inject(hanging(copiesTo("dev")))
		s.Start()
		ids := s.publish(at{dev, created("dev", "")})
		// An upload goes past a copy that has not begun.
		s.Await("the copy of what is uploaded again", s.has(`SELECT 1 FROM {copy_items} WHERE media_id = 'm1' AND leased_until IS NOT NULL`))
		ids = append(ids, s.publish(at{dev, s.Upload("m4", "d.txt", "four")}, at{dev, s.Upload("m1", "a.txt", "one of dev")},
			at{dev, s.Rename("m2", "b.txt", "b2.txt")}, at{dev, s.Upload("m5", "c.txt", "taken")})...)
		s.Await("the upload of another media", func() bool { return s.Event(ids[1]).String() == "completed done" })
		for _, id := range ids[2:] {
			// One that makes the copy itself is running.
			if got := s.Event(id); got.State != outbox.Available && got.State != outbox.Running {
				t.Errorf("an event that shares a media or name with an owed item: %s, want it unfinished", got)
			}
		}
		hang.Remove()
		s.Await("the others", func() bool { return s.Event(ids[4]).String() == "dead key_taken" && s.state("dev") == "complete" })
		s.Await("the others", func() bool { return s.Event(ids[2]).State == "completed" && s.Event(ids[3]).State == "completed" })
		s.ends(ids, "completed done", "completed done", "completed done", "completed done", "dead key_taken")
		s.holds(map[string]string{
			"media/a.txt": "one", "media/b.txt": "two", "media/c.txt": "three",
			directory("dev") + "a.txt": "one of dev", directory("dev") + "b2.txt": "two",
			directory("dev") + "c.txt": "three", directory("dev") + "d.txt": "four",
		})
		for _, name := range []string{"a.txt", "b.txt", "c.txt"} {
			if n := s.effects("s3:CopyObject", directory("dev")+name); n != 1 {
				t.Errorf("%s was copied %d times, want once", name, n)
			}
		}
		s.nothingRefused()
	})
}

// It may wait for long, and may die in the end.
func TestAnUploadThatWaitsForANameGoesPastNoCopy(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "x.txt", "two"))
		s.Work()
		s.pause(s.prod)
		s.slowRetries()
		broken := s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Key: directory("dev") + "a.txt", Status: 500, Code: "InternalError"})
		ids := s.publish(at{s.prod, s.Rename("m2", "x.txt", "y.txt")}, at{dev, created("dev", "")}, at{dev, s.Upload("m1", "y.txt", "of dev")})
		stop := s.Start()
		s.Await("the copy to be tried again later", s.has(`SELECT 1 FROM {copy_items} WHERE media_id = 'm1' AND failure_count = 1`))
		var before int
		s.get(&before, `SELECT wait_count FROM {outbox} WHERE event_id = ?`, ids[2])
		s.Await("the upload waiting", s.has(`SELECT 1 FROM {outbox} WHERE event_id = ? AND wait_count > ?`, ids[2], before+1))
		stop()
		s.ends(ids[1:], "completed done", "available")
		broken.Remove()
		s.exec(`UPDATE {copy_items} SET next_attempt_at = 0`)
		s.Work()
		s.copied("dev", "running", 1, nil)
		s.holds(map[string]string{"media/a.txt": "one", "media/x.txt": "two", directory("dev") + "a.txt": "one"})
		s.resume(s.prod)
		s.Work()
		s.ends(ids, "completed done", "completed done", "dead key_taken")
		s.holds(map[string]string{"media/a.txt": "one", "media/y.txt": "two",
			directory("dev") + "a.txt": "one", directory("dev") + "y.txt": "two"})
		s.copied("dev", "complete", 2, nil)
		s.nothingRefused()
	})
}

func TestRenameInTheTargetWaitsForAMediaThatIsYetToJoin(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.pause(s.prod)
		ids := s.publish(at{s.prod, s.Upload("m1", "a.txt", "one")}, at{s.prod, s.Upload("m2", "b.txt", "two")},
			at{s.prod, s.Upload("m3", "c.txt", "three")}, at{dev, created("dev", "")},
			at{dev, s.Rename("m1", "a.txt", "z.txt")}, at{dev, s.Delete("m2", "b.txt")}, at{dev, s.Upload("m3", "c.txt", "three of dev")})
		s.Work()
		s.ends(ids[3:], "completed done", "available", "completed skipped", "completed done")
		s.resume(s.prod)
		s.Work()
		s.ends(ids[4:], "completed done", "completed skipped", "completed done")
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", "media/c.txt": "three",
			directory("dev") + "z.txt": "one", directory("dev") + "c.txt": "three of dev"})
		s.copied("dev", "complete", 3, nil)
		s.nothingRefused()
	})
}

func TestSlowTargetDoesNotDelayOtherCopies(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.Config.IntegrationConcurrency = 2
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			s.prod.Publish(s.Upload(name, name+".txt", name))
		}
		s.Work()
		hang := s.AWS.Inject(hanging(copiesTo("slow")))
		s.Start()
		s.prod.In("slow").Publish(created("slow", ""))
		s.Await("copies that hang", func() bool { return hang.Hits() >= 2 })
		s.prod.In("dev").Publish(created("dev", ""))
		s.Await("the other copy", func() bool { return s.state("dev") == "complete" })
		s.copied("slow", "running", 0, nil)
		hang.Remove()
		s.Await("the slow copy", func() bool { return s.state("slow") == "complete" })
	})
}

func TestEventThatBeganBeforeTheSnapshotBelongsToIt(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if db.Dialect == database.SQLite {
			t.Skip("SQLite's one writer commits in sequence")
		}
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "old"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		late, err := s.DB.BeginTxx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ids := s.publishIn(late, at{s.prod.In("dev"), created("dev", "")})
		// The upload has replaced the object, and its answer is lost.
		hang := s.AWS.Inject(awslocal.Rule{API: "s3:PutObject", Key: "media/a.txt", Times: 1, AfterEffect: true, Hang: true})
		s.Start()
		ids = append(ids, s.prod.Publish(s.Upload("m1", "a.txt", "new")))
		s.Await("the upload", func() bool { return hang.Hits() == 1 })
		if err := late.Commit(); err != nil {
			t.Fatal(err)
		}
		s.Await("an attempt to copy what the ledger still has", func() bool {
			var tried bool
			s.get(&tried, `SELECT EXISTS (SELECT 1 FROM {copy_items} WHERE media_id = 'm1' AND lease_token > 0 AND leased_until IS NULL)`)
			return tried
		})
		hang.Remove()
		s.Await("the copy", func() bool { return s.state("dev") != "running" && s.Event(ids[1]).State == "completed" })
		s.ends(ids, "completed done", "completed done")
		s.copied("dev", "complete", 2, nil)
		s.holds(map[string]string{"media/a.txt": "new", "media/b.txt": "two", directory("dev") + "a.txt": "new", directory("dev") + "b.txt": "two"})
		s.nothingRefused()
	})
}

func TestDeadCreationHoldsNothingBackAndIsReplayed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		// Another integration stands where the environment's directory would be.
		s.own(s.prod.In("beside"), directory("dev")+"sub")
		ids := s.publish(at{dev, created("dev", "")}, at{s.prod, s.Rename("m1", "a.txt", "z.txt")}, at{dev, s.Rename("m2", "b.txt", "y.txt")})
		s.Work()
		s.ends(ids, "dead directory_taken", "completed done", "dead no_integration")

		if err := s.Settings.Delete(t.Context(), service, "beside", "test", "mended"); err != nil {
			t.Fatal(err)
		}
		s.retry(ids[0])
		s.retry(ids[2])
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/z.txt": "one", "media/b.txt": "two", directory("dev") + "y.txt": "two"})
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "source_changed"})
		s.nothingRefused()
	})
}

func TestUploadThatWentPastItsCopyEndsFirst(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.pause(s.prod)
		s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:PutObject", Key: directory("dev") + "*"}, 1))
		ids := s.publish(at{s.prod, s.Upload("m1", "a.txt", "one")}, at{dev, created("dev", "")}, at{dev, s.Upload("m1", "a.txt", "one of dev")})
		s.Work()
		s.ends(ids, "available", "completed done", "retryable conflict")
		s.resume(s.prod)
		s.Work()
		s.holds(map[string]string{"media/a.txt": "one"})
		s.copied("dev", "running", 0, nil)
		s.retry(ids[2])
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one of dev"})
		s.copied("dev", "complete", 1, nil)
		s.nothingRefused()
	})
}

// An event that goes past an item may be put behind an earlier event, for a file name
// at which the item may have left something. The earlier one doesn't wait for it then.
func TestAnEventIsNotWaitedForBehindWhichItWaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.lostCopy(directory("dev") + "a.txt")
		dev.Publish(created("dev", ""))
		s.Work() // the item is tried again much later
		hang := s.AWS.Inject(hanging(awslocal.Rule{API: "s3:PutObject", Key: directory("dev") + "b.txt"}))
		s.Start()
		ids := s.publish(at{dev, s.Delete("m1", "a.txt")}, at{dev, s.Upload("m2", "b.txt", "two")},
			at{dev, s.Rename("m2", "b.txt", "a.txt")}, at{dev, s.Upload("m1", "c.txt", "three")})
		s.Await("the later upload having gone past the item", s.has(`SELECT 1 FROM {copy_items} i JOIN {outbox} e ON e.sequence = i.overtaken_by
			WHERE e.event_id = ? AND e.wait_count > 0`, ids[3]))
		hang.Remove()
		s.ends(ids, "completed done", "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "two", directory("dev") + "c.txt": "three"})
	})
}
