package environment_test

import (
	"fmt"
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func TestNewEnvironmentHasTheMediaOfItsSource(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "写真 1+%.txt", "one"), s.Upload("m2", "b.txt", "two"),
			s.Upload("m3", "gone.txt", "three"), s.Delete("m3", "gone.txt"))
		s.Work()
		id := s.prod.In("dev").Publish(created("dev", ""))
		s.Work()
		s.ends([]string{id}, "completed done")
		s.holds(map[string]string{
			"media/写真 1+%.txt": "one", "media/b.txt": "two",
			directory("dev") + "写真 1+%.txt": "one", directory("dev") + "b.txt": "two",
		})
		s.copied("dev", "complete", 2, nil)
		s.nothingRefused()
	})
}

func TestCopyHasTheMediaAsOfItsEvent(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"),
			s.Upload("m4", "d.txt", "four"))
		s.Work()
		ids := s.publish(
			at{dev, created("dev", "")},
			at{s.prod, s.Rename("m1", "a.txt", "a2.txt")},
			at{s.prod, s.Upload("m2", "b.txt", "two again")},
			at{s.prod, s.Delete("m3", "c.txt")},
			at{s.prod, s.Upload("m4", "c.txt", "four at another's name")},
			at{s.prod, s.Upload("m5", "e.txt", "too late")},
		)
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done", "completed done", "completed done", "completed done")
		s.holds(map[string]string{
			"media/a2.txt": "one", "media/b.txt": "two again", "media/c.txt": "four at another's name", "media/e.txt": "too late",
			directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two",
			directory("dev") + "c.txt": "three", directory("dev") + "d.txt": "four",
		})
		s.copied("dev", "complete", 4, nil)
		s.nothingRefused()
	})
}

func TestSourceEventsBeginAfterTheSnapshotHoweverLongThatTakes(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
	s.Work()
	for _, statement := range []string{
		`CREATE FUNCTION {slow}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END'`,
		`CREATE TRIGGER slow BEFORE UPDATE ON {copies} FOR EACH ROW WHEN (OLD.state = 'pending') EXECUTE FUNCTION {slow}()`,
	} {
		s.exec(statement)
	}
	// A worker is at work in the source already.
	hang := s.AWS.Inject(hanging(awslocal.Rule{API: "s3:PutObject"}))
	s.Start()
	s.prod.Publish(s.Upload("m3", "c.txt", "three"))
	s.Await("the upload", func() bool { return hang.Hits() == 1 })
	ids := s.publish(at{s.prod.In("dev"), created("dev", "")},
		at{s.prod, s.Rename("m1", "a.txt", "z.txt")}, at{s.prod, s.Delete("m2", "b.txt")})
	s.Await("the source's events", func() bool {
		return s.Event(ids[1]).String() == "completed done" && s.Event(ids[2]).String() == "completed done"
	})
	hang.Remove()
	s.Await("the copy", func() bool { return s.state("dev") == "complete" })
	s.holds(map[string]string{"media/z.txt": "one", "media/c.txt": "three",
		directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two", directory("dev") + "c.txt": "three"})
	s.nothingRefused()
}

func TestSourceGoesOnWhileTheCopyRuns(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"))
		s.Work()
		rule := hanging(copiesTo("dev"))
		rule.Match = func(c awslocal.Call) bool { return c.Key != directory("dev")+"a.txt" }
		hang := s.AWS.Inject(rule)
		s.Start()
		ids := s.publish(at{s.prod.In("dev"), created("dev", "")},
			at{s.prod, s.Rename("m1", "a.txt", "z.txt")}, at{s.prod, s.Upload("m4", "d.txt", "four")})
		s.Await("the source's events", func() bool {
			return s.Event(ids[1]).String() == "completed done" && s.Event(ids[2]).String() == "completed done"
		})
		if got := s.shown("dev"); got.State != "running" || got.Done != 1 || got.Total != 3 {
			t.Errorf("%+v, want running with 1 of 3 done", got)
		}
		hang.Remove()
		s.Await("the copy", func() bool { return s.state("dev") == "complete" })
		s.holds(map[string]string{
			"media/z.txt": "one", "media/b.txt": "two", "media/c.txt": "three", "media/d.txt": "four",
			directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two", directory("dev") + "c.txt": "three",
		})
		s.nothingRefused()
	})
}

func TestMediaWithAnEarlierEventJoinsWhenThatEnds(t *testing.T) {
	t.Parallel()
	type ending struct {
		name    string
		end     func(s *scene, upload string)
		inDev   string
		ofEvent string
	}
	for _, c := range []ending{
		{"Completed", func(s *scene, id string) { s.retry(id); s.Work() }, "new", "completed done"},
		{"Discarded", func(s *scene, id string) { s.discard(id); s.Work() }, "old", "discarded conflict"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				s.slowRetries()
				s.prod.Publish(s.Upload("m1", "a.txt", "old"))
				s.Work()
				s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:PutObject", Key: "media/a.txt"}, 1))
				upload := s.prod.Publish(s.Upload("m1", "a.txt", "new"))
				s.Work()
				s.ends([]string{upload}, "retryable conflict")

				id := s.prod.In("dev").Publish(created("dev", ""))
				s.prod.Publish(s.Upload("m2", "b.txt", "after"))
				s.Work()
				s.ends([]string{id}, "completed done")
				s.holds(map[string]string{"media/a.txt": "old", "media/b.txt": "after"})
				s.copied("dev", "running", 0, nil)

				c.end(s, upload)
				s.ends([]string{upload}, c.ofEvent)
				s.holds(map[string]string{"media/a.txt": c.inDev, "media/b.txt": "after", directory("dev") + "a.txt": c.inDev})
				s.copied("dev", "complete", 1, nil)
				s.nothingRefused()
			})
		})
	}
}

func TestMediaOfAHeldSourceJoinsWhenItIsReleased(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "old"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.pause(s.prod)
		s.prod.Publish(s.Upload("m1", "a.txt", "new"), s.Upload("m3", "c.txt", "three"))
		ids := s.publish(at{s.prod.In("dev"), created("dev", "")}, at{s.prod, s.Delete("m2", "b.txt")})
		s.Work()
		s.ends(ids, "completed done", "available")
		s.holds(map[string]string{"media/a.txt": "old", "media/b.txt": "two", directory("dev") + "b.txt": "two"})
		s.resume(s.prod)
		s.Work()
		s.holds(map[string]string{"media/a.txt": "new", "media/c.txt": "three",
			directory("dev") + "a.txt": "new", directory("dev") + "b.txt": "two", directory("dev") + "c.txt": "three"})
		s.copied("dev", "complete", 3, nil)
		s.nothingRefused()
	})
}

func TestDeadEarlierEventLeavesTheMediaAsTheLedgerHasIt(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "old"))
		s.Work()
		upload, other := s.Upload("m1", "a.txt", "new"), s.Upload("m2", "b.txt", "two")
		s.RemoveFile(upload.Source)
		s.RemoveFile(other.Source)
		ids := s.publish(at{s.prod, upload}, at{s.prod, other}, at{s.prod.In("dev"), created("dev", "")})
		s.Work()
		s.ends(ids, "dead source_gone", "dead source_gone", "completed done")
		s.copied("dev", "complete", 1, nil)

		// A replay after the snapshot doesn't change it.
		s.PutFile(upload.Source, "new")
		s.PutFile(other.Source, "two")
		s.retry(ids[0])
		s.retry(ids[1])
		s.Work()
		s.ends(ids, "completed done", "completed done", "completed done")
		s.holds(map[string]string{"media/a.txt": "new", "media/b.txt": "two", directory("dev") + "a.txt": "old"})
		s.copied("dev", "complete", 1, nil)
	})
}

func TestEnvironmentMadeFromOneWhoseCopyRunsGetsEverything(t *testing.T) {
	t.Parallel()
	for _, deletedMeanwhile := range []bool{false, true} {
		t.Run(fmt.Sprintf("deleted=%t", deletedMeanwhile), func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				dev, stg := s.prod.In("dev"), s.prod.In("stg")
				s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
				s.Work()
				list := []at{
					{s.prod, s.Upload("m3", "c.txt", "three")},
					{dev, created("dev", "")},
					{dev, s.Upload("m4", "d.txt", "four")},
					{dev, s.Rename("m1", "a.txt", "a2.txt")},
					{stg, created("stg", "dev")},
					{dev, s.Upload("m5", "e.txt", "too late for stg")},
				}
				want := map[string]string{
					"media/a.txt": "one", "media/b.txt": "two", "media/c.txt": "three",
					directory("stg") + "a2.txt": "one", directory("stg") + "b.txt": "two",
					directory("stg") + "c.txt": "three", directory("stg") + "d.txt": "four",
				}
				if deletedMeanwhile {
					list = append(list, at{dev, deleted()})
				} else {
					want[directory("dev")+"a2.txt"] = "one"
					want[directory("dev")+"b.txt"] = "two"
					want[directory("dev")+"c.txt"] = "three"
					want[directory("dev")+"d.txt"] = "four"
					want[directory("dev")+"e.txt"] = "too late for stg"
				}
				s.publish(list...)
				s.Work()
				s.holds(want)
				s.copied("stg", "complete", 4, nil)
				s.nothingRefused()
			})
		})
	}
}

func TestMediaThatFailedOnTheWayFailsInTheNextEnvironmentUntilBothAreRetried(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.putStranger(directory("dev") + "a.txt")
		s.publish(at{s.prod.In("dev"), created("dev", "")}, at{s.prod.In("stg"), created("stg", "dev")})
		s.Work()
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "key_taken"})
		s.copied("stg", "incomplete", 1, map[string]string{"m1": "source_changed"})
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", directory("dev") + "a.txt": "a stranger's",
			directory("dev") + "b.txt": "two", directory("stg") + "b.txt": "two"})
		// The source still lacks it.
		s.retryFailed("stg")
		s.Work()
		s.copied("stg", "incomplete", 1, map[string]string{"m1": "source_changed"})

		s.AWS.DeleteDirect(store, directory("dev")+"a.txt")
		for _, name := range []string{"dev", "stg"} {
			if n := s.retryFailed(name); n != 1 {
				t.Errorf("%d items of %s are owed again, want 1", n, name)
			}
			s.Work()
			s.copied(name, "complete", 2, nil)
		}
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", directory("dev") + "a.txt": "one",
			directory("dev") + "b.txt": "two", directory("stg") + "a.txt": "one", directory("stg") + "b.txt": "two"})
		s.nothingRefused()
	})
}

func TestMediaThatFailedOnTheWayIsNotCopiedAsItWasBefore(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		s.prod.Publish(s.Upload("m1", "a.txt", "old"), s.Upload("m2", "b.txt", "two"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.prod.Publish(s.Upload("m1", "a.txt", "new"))
		s.Work()
		s.putStranger("media/a.txt")
		s.publish(at{dev, created("dev", "")}, at{stg, created("stg", "dev")})
		s.Work()
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "source_changed"})
		s.copied("stg", "incomplete", 1, map[string]string{"m1": "source_changed"})
		s.holds(map[string]string{"media/a.txt": "a stranger's", "media/b.txt": "two",
			directory("dev") + "a.txt": "old", directory("dev") + "b.txt": "two", directory("stg") + "b.txt": "two"})
		s.nothingRefused()
	})
}

func TestDiscardedCreationLiftsItsBarrierAndCopiesNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.own(dev, "media")
		s.pause(dev)
		ids := s.publish(at{dev, created("dev", "")}, at{dev, s.Upload("m2", "b.txt", "two")}, at{s.prod.In("stg"), created("stg", "dev")})
		s.Work()
		s.discard(ids[0])
		s.resume(dev)
		s.Work()
		s.ends(ids, "discarded", "completed done", "completed done")
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "b.txt": "two", directory("stg") + "b.txt": "two"})
		s.copied("stg", "complete", 1, nil)
		s.nothingRefused()
	})
}

// Discarded before any worker saw it: its snapshot is still due.
func TestCreationDiscardedBeforeItsSnapshotHoldsUpNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		ids := s.publish(at{s.prod.In("dev"), created("dev", "")}, at{s.prod, s.Upload("m1", "a.txt", "two")})
		s.discard(ids[0])
		s.Work()
		s.ends(ids, "discarded", "completed done")
		s.holds(map[string]string{"media/a.txt": "two"})
		s.nothingRefused()
	})
}

// The deletion of the source comes first in publish order, although it waits for
// its next attempt.
func TestEnvironmentMadeFromOneThatIsBeingDeletedHasNothingOfIt(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev, stg := s.prod.In("dev"), s.prod.In("stg")
		dev.Publish(created("dev", ""), s.Upload("m1", "a.txt", "one"))
		s.Work()
		broken := s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:ListObjectsV2"}, 0))
		deletion := dev.Publish(deleted())
		s.Work()
		s.ends([]string{deletion}, "retryable conflict")
		creation := stg.Publish(created("stg", "dev"))
		s.Work()
		s.ends([]string{creation}, "completed done")
		s.copied("stg", "complete", 0, nil)
		broken.Remove()
		s.retry(deletion)
		s.Work()
		s.ends([]string{deletion}, "completed done")
		s.holds(map[string]string{})
		s.copied("stg", "complete", 0, nil)
	})
}

// A copy that hasn't ended is looked at with each event that ends.
func TestCopyThatOwesNothingMoreHasEnded(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(s *scene){
		"of nothing": func(s *scene) { s.prod.In("dev").Publish(created("dev", "")) },
		"of media": func(s *scene) {
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.prod.In("dev").Publish(created("dev", ""))
		},
		"whose last media never joined": func(s *scene) {
			upload := s.Upload("m1", "a.txt", "one")
			s.RemoveFile(upload.Source)
			s.pause(s.prod)
			s.publish(at{s.prod, upload}, at{s.prod.In("dev"), created("dev", "")})
			s.Work()
			s.resume(s.prod)
		},
		"whose last media was given up": func(s *scene) {
			s.prod.Publish(s.Upload("m1", "a.txt", "one"))
			s.prod.In("dev").Publish(created("dev", ""))
			s.slowRetries()
			s.AWS.Inject(conflicting(copiesTo("dev"), 0))
			s.Work()
			s.pause(s.prod.In("dev"))
			s.prod.Publish(s.Delete("m1", "a.txt"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				do(s)
				s.Work()
				s.Start()
				s.Await("the copy's end", s.has(`SELECT 1 FROM {copies} WHERE state = 'ended'`))
			})
		})
	}
}
