package environment_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/worker"
)

func TestCopyMakesOneCallPerMedia(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.AtAWS()
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"))
		s.Work()
		s.AWS.ResetCounts()
		s.prod.In("dev").Publish(created("dev", ""))
		s.Work()
		want := map[string]int{"s3:CopyObject": 3}
		if diff := cmp.Diff(want, s.AWS.BucketCounts(store)); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		s.nothingRefused()
	})
}

func TestCopyCarriesTheMediasVersionAndTheEnvironmentsServiceID(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		upload := s.Upload("m1", "a.txt", "one")
		s.prod.Publish(upload)
		id := dev.Publish(created("dev", ""))
		s.Work()
		object, _, err := s.AWS.GetDirect(store, directory("dev")+"a.txt")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"upload-source": "microcms", "microcms-service": serviceID("dev"), "microcms-status": "public",
			"microcms-version": time.UnixMicro(upload.Version.Micros()).UTC().Format("20060102150405"),
		}
		if diff := cmp.Diff(want, object.Metadata); diff != "" {
			t.Errorf("metadata (-want +got):\n%s", diff)
		}
		if object.ContentType != "text/plain" {
			t.Errorf("content type %q", object.ContentType)
		}
		row := dev.Ledger("m1")
		if row == nil || row.Version != upload.Version.Micros() || row.Sequence != s.Event(id).Sequence ||
			row.ETag != object.ETag || row.Size != object.Size || row.ContentType != "text/plain" || *row.Key != object.Key {
			t.Errorf("the ledger has %+v", row)
		}
	})
}

func TestSettingsAreCopiedNeverOverExistingOnesAndThenIndependent(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev, own := s.prod.In("dev"), s.prod.In("own")
		memo, domain, pinned := "of production", "https://media.example.com", true
		s.prod.Set(integration.Change{Memo: &memo, CustomDomain: &domain, PinFileNames: &pinned})
		s.own(own, "media")
		before := own.Integration().Settings
		s.publish(at{dev, created("dev", "")}, at{own, created("own", "")})
		s.Work()

		want := s.prod.Integration().Settings
		want.EnvironmentID, want.EnvironmentServiceID, want.Directory = "dev", serviceID("dev"), directory("dev")[len("media/"):len(directory("dev"))-1]
		if diff := cmp.Diff(want, dev.Integration().Settings); diff != "" {
			t.Errorf("copied settings (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(before, own.Integration().Settings); diff != "" {
			t.Errorf("existing settings (-want +got):\n%s", diff)
		}
		changed := "changed"
		dev.Set(integration.Change{Memo: &changed})
		s.prod.Set(integration.Change{PinFileNames: new(bool)})
		if s.prod.Integration().Memo != memo || !dev.Integration().PinFileNames {
			t.Error("a change of one environment's settings changed the other's")
		}
	})
}

func TestPrefixMayBeTheBucketsRootOrManyCharacters(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "a/b", "メディア/写真"} {
		t.Run(prefix, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := &scene{Stage: stage.New(t, db), t: t}
				s.prod = s.Customer(service, store, prefix)
				dev := s.prod.In("dev")
				s.prod.Publish(s.Upload("m1", "が.txt", "one"), s.Upload("m2", "か\u3099.txt", "two"))
				dev.Publish(created("dev", ""))
				s.Work()
				all, above := s.prod.KeyPrefix(), dev.KeyPrefix()
				s.holds(map[string]string{all + "が.txt": "one", all + "か\u3099.txt": "two",
					above + "が.txt": "one", above + "か\u3099.txt": "two"})
				dev.Publish(deleted())
				s.Work()
				s.holds(map[string]string{all + "が.txt": "one", all + "か\u3099.txt": "two"})
				s.nothingRefused()
			})
		})
	}
}

func TestCreationWithoutSettingsAnywhereIsSkipped(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		other := &stage.Place{Stage: s.Stage, Service: "service-without", Environment: "dev"}
		ids := s.publish(at{other, created("dev", "")}, at{s.prod.In("dev"), created("dev", "nowhere")})
		s.Work()
		s.ends(ids, "completed skipped", "dead no_integration")
	})
}

func TestTargetInAnotherBucketFailsItsItems(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		settings := s.without(s.Customer("OTHER#1", "other-bucket", "media"))
		id := serviceID("dev")
		dev.Set(integration.Change{EnvironmentServiceID: &id, Bucket: &settings.Bucket, Region: &settings.Region,
			RoleARN: &settings.RoleARN, ExternalID: &settings.ExternalID, Prefix: &settings.Prefix})
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "incomplete", 0, map[string]string{"m1": "other_account"})
		if keys := s.AWS.Keys("other-bucket"); len(keys) != 0 {
			t.Errorf("the other bucket has %v", keys)
		}
		s.nothingRefused()
	})
}

func TestTargetWithAnotherPrefixReadsTheSourcesIfItMay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, policy string
		want         map[string]string
		state        string
		failed       map[string]string
	}{
		{"allowed", readsMedia, map[string]string{"media/a.txt": "one", "staging/" + directory("dev")[len("media/"):] + "a.txt": "one"}, "complete", nil},
		{"denied", awslocal.CustomerPolicy(store, "staging"), map[string]string{"media/a.txt": "one"}, "incomplete", map[string]string{"m1": "denied"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				dev := s.prod.In("dev")
				s.prod.Publish(s.Upload("m1", "a.txt", "one"))
				s.own(dev, "staging")
				s.role(dev, "arn:aws:iam::123456789012:role/dev", c.policy)
				dev.Publish(created("dev", ""))
				s.Work()
				s.holds(c.want)
				s.copied("dev", c.state, int64(len(c.want))-1, c.failed)
				if got := dev.Integration().State; got != integration.Active {
					t.Errorf("the target is %s, want active", got)
				}
				if c.failed == nil {
					s.nothingRefused()
				}
			})
		})
	}
}

const readsMedia = `{"Version": "2012-10-17", "Statement": [
	{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::` + store + `"},
	{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": "arn:aws:s3:::` + store + `/staging/*"},
	{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::` + store + `/media/*"}]}`

func TestSourceReplacedBehindOurBackFailsItsItem(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"), s.Upload("m3", "c.txt", "three"))
		s.Work()
		s.own(dev, "media")
		s.pause(dev)
		id := dev.Publish(created("dev", ""))
		s.Work()
		s.putStranger("media/a.txt")
		s.AWS.DeleteDirect(store, "media/b.txt")
		s.resume(dev)
		s.Work()
		s.ends([]string{id}, "completed done")
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "source_changed", "m2": "source_changed"})

		// Mended: the content, and so the ETag, is as it was.
		for key, content := range map[string]string{"media/a.txt": "one", "media/b.txt": "two"} {
			if _, err := s.AWS.PutDirect(store, key, []byte(content), awslocal.Stranger{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.retryFailed("dev"); n != 2 {
			t.Errorf("%d items are owed again, want 2", n)
		}
		s.Work()
		s.copied("dev", "complete", 3, nil)
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", "media/c.txt": "three",
			directory("dev") + "a.txt": "one", directory("dev") + "b.txt": "two", directory("dev") + "c.txt": "three"})
		s.nothingRefused()
	})
}

func TestStrangersObjectInTheTargetStays(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.putStranger(directory("dev") + "a.txt")
		s.prod.In("dev").Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "incomplete", 1, map[string]string{"m1": "key_taken"})
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two",
			directory("dev") + "a.txt": "a stranger's", directory("dev") + "b.txt": "two"})
		var leftovers int
		s.get(&leftovers, `SELECT count(*) FROM {possible_writes}`)
		if leftovers != 0 {
			t.Errorf("%d possible writes are noted, want none: nothing was written", leftovers)
		}
		s.nothingRefused()
	})
}

func TestCopyWhoseAnswerWasLostIsTakenUp(t *testing.T) {
	t.Parallel()
	for _, atAWS := range []bool{false, true} {
		name := map[bool]string{false: "elsewhere", true: "at AWS"}[atAWS]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				if atAWS {
					s.AtAWS()
				}
				s.prod.Publish(s.Upload("m1", "a.txt", "one"))
				s.Work()
				s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, AfterEffect: true, Reset: true})
				s.prod.In("dev").Publish(created("dev", ""))
				s.Start()
				s.Await("the copy", func() bool { return s.state("dev") == "complete" })
				s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one"})
				if n := s.effects("s3:CopyObject", directory("dev")+"a.txt"); n != 0 {
					t.Errorf("it was copied %d times again", n)
				}
				s.nothingRefused()
			})
		})
	}
}

// A source that is gone after a copy whose answer was lost is no failure: the
// copy is there.
func TestLostCopyIsTakenUpAlthoughItsSourceIsGone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.AtAWS()
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, AfterEffect: true, Status: 409, Code: "OperationAborted"})
		s.Config.RetryBase = 20 * time.Second
		s.prod.In("dev").Publish(created("dev", ""))
		s.Work()
		s.AWS.DeleteDirect(store, "media/a.txt")
		s.exec(`UPDATE {copy_items} SET next_attempt_at = 0`)
		s.Work()
		s.holds(map[string]string{directory("dev") + "a.txt": "one"})
		s.copied("dev", "complete", 1, nil)
	})
}

func TestItemThatAnotherWorkerTookOverIsItsToRecord(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		// As if the worker had slept for so long that another has the item.
		s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, Before: func(context.Context, awslocal.Call) {
			if _, err := db.Exec(db.SQL(`UPDATE {copy_items} SET lease_token = lease_token + 1, leased_until = {now} + 3600000000`)); err != nil {
				t.Error(err)
			}
		}})
		stop := s.Start()
		s.prod.In("dev").Publish(created("dev", ""))
		s.Await("the copy", func() bool { return s.effects("s3:CopyObject", directory("dev")+"a.txt") == 1 })
		stop()
		s.copied("dev", "running", 0, nil)
		if row := s.prod.In("dev").Ledger("m1"); row != nil {
			t.Errorf("who lost the item recorded %+v", row)
		}

		// The other one dies, and a third takes up what is there.
		s.exec(`UPDATE {copy_items} SET leased_until = 0`)
		s.Work()
		s.copied("dev", "complete", 1, nil)
		s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one"})
		if n := s.effects("s3:CopyObject", directory("dev")+"a.txt"); n != 1 {
			t.Errorf("it was copied %d times", n)
		}
		s.nothingRefused()
	})
}

// It would else arrive when the media may have been renamed or deleted, and
// leave an object that nobody knows of.
func TestCopyThatWasCutOffHasTimeToArrive(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.SQLite(t))
	s.prod.Publish(s.Upload("m1", "a.txt", "one"))
	s.Work()
	hang := s.AWS.Inject(hanging(copiesTo("dev")))
	stop := s.Start()
	s.prod.In("dev").Publish(created("dev", ""))
	s.Await("the copy", func() bool { return hang.Hits() > 0 })
	var before, left int64
	s.get(&before, `SELECT {now}`)
	stop() // when its grace period is over
	s.get(&left, `SELECT coalesce(max(leased_until), 0) - ? FROM {copy_items} WHERE state = 'owed'`, before)
	if left < bucket.LateWrites.Microseconds() {
		t.Errorf("it may be made again %d µs after the shutdown began", left)
	}
	hang.Remove()
	s.Work()
	s.holds(map[string]string{"media/a.txt": "one", directory("dev") + "a.txt": "one"})
}

func TestSeveralWorkersShareACopy(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.PostgreSQL(t))
	want := map[string]string{}
	var uploads []at
	for i := range 60 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".txt"
		uploads = append(uploads, at{s.prod, s.Upload("m"+name, name, name)})
		want["media/"+name], want[directory("dev")+name] = name, name
	}
	s.publish(uploads...)
	s.Work()
	s.AWS.ResetCounts()
	for _, name := range []string{"first", "second", "third"} {
		s.Config.Name = name
		s.Start()
	}
	s.prod.In("dev").Publish(created("dev", ""))
	s.Await("the copy", func() bool { return s.state("dev") == "complete" })
	s.holds(want)
	if n := s.AWS.Counts()["s3:CopyObject"]; n != 60 {
		t.Errorf("%d copies were made of 60 media", n)
	}
	s.nothingRefused()
}

func TestFailedCopiesAreRetriedWithBackoffAndThenFail(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
		s.Work()
		s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:CopyObject", Key: "*/a.txt"}, 3)) // of 4 attempts
		s.AWS.Inject(conflicting(awslocal.Rule{API: "s3:CopyObject", Key: "*/b.txt"}, 0))
		s.Start()
		s.prod.In("dev").Publish(created("dev", ""))
		s.Await("the copy", func() bool { return s.state("dev") == "incomplete" })
		s.copied("dev", "incomplete", 1, map[string]string{"m2": "conflict"})
		s.holds(map[string]string{"media/a.txt": "one", "media/b.txt": "two", directory("dev") + "a.txt": "one"})
		s.nothingRefused()
	})
}

func TestThrottledCopiesAreRetried(t *testing.T) {
	t.Parallel()
	s := newScene(t, dbtest.SQLite(t))
	s.prod.Publish(s.Upload("m1", "a.txt", "one"), s.Upload("m2", "b.txt", "two"))
	s.Work()
	s.AWS.Inject(throttled(awslocal.Rule{API: "s3:CopyObject"}, 4))
	s.Start()
	s.prod.In("dev").Publish(created("dev", ""))
	s.Await("the copy", func() bool { return s.state("dev") == "complete" })
	s.copied("dev", "complete", 2, nil)
}

func TestWorkerIsIdleWhileCopiesOnlyWaitForTheirRetry(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.slowRetries()
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.AWS.Inject(conflicting(copiesTo("dev"), 0))
		dev.Publish(created("dev", ""), s.Rename("m1", "a.txt", "b.txt"))
		w, err := worker.New(t.Context(), s.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.RunUntilIdle(t.Context(), 20*time.Second); err != nil {
			t.Fatalf("%v\n%s", err, s.Dump())
		}
		s.copied("dev", "running", 0, nil)
	})
}

// What an attempt may have written goes with the media's next event in the target,
// however the item came to fail.
func TestFailedCopyLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail func(s *scene)
		code string
	}{
		"of its own": {func(s *scene) { s.Config.RetryAttempts = 1 }, "conflict"},
		"given up": {func(s *scene) {
			s.slowRetries()
			s.Work()
			s.pause(s.prod.In("dev"))
			s.prod.Publish(s.Delete("m1", "a.txt"))
			s.Work()
			s.resume(s.prod.In("dev"))
		}, "source_changed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				s := newScene(t, db)
				dev := s.prod.In("dev")
				s.prod.Publish(s.Upload("m1", "a.txt", "one"))
				s.Work()
				s.lostCopy(directory("dev") + "a.txt")
				dev.Publish(created("dev", ""))
				c.fail(s)
				s.Work()
				s.copied("dev", "incomplete", 0, map[string]string{"m1": c.code})
				dev.Publish(s.Upload("m1", "b.txt", "of dev"))
				s.Work()
				got := s.prod.Contents()
				delete(got, "media/a.txt")
				if diff := cmp.Diff(map[string]string{directory("dev") + "b.txt": "of dev"}, got); diff != "" {
					t.Errorf("bucket (-want +got):\n%s\n%s", diff, s.Dump())
				}
			})
		})
	}
}

// A worker that died may have made the copy: who takes over looks, although the
// source is gone.
func TestCopyOfADeadWorkerIsTakenUpAlthoughItsSourceIsGone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		s.AtAWS()
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, Before: func(context.Context, awslocal.Call) {
			if _, err := db.Exec(db.SQL(`UPDATE {copy_items} SET lease_token = lease_token + 1, leased_until = {now} + 3600000000`)); err != nil {
				t.Error(err)
			}
		}})
		stop := s.Start()
		s.prod.In("dev").Publish(created("dev", ""))
		s.Await("the copy", func() bool { return s.effects("s3:CopyObject", directory("dev")+"a.txt") == 1 })
		stop()
		s.AWS.DeleteDirect(store, "media/a.txt")
		s.exec(`UPDATE {copy_items} SET leased_until = 0`)
		s.Work()
		s.holds(map[string]string{directory("dev") + "a.txt": "one"})
		s.copied("dev", "complete", 1, nil)
	})
}

func TestCopyOverAnOlderOneLeavesNoOtherName(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.prod.Publish(s.Rename("m1", "a.txt", "b.txt"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.holds(map[string]string{"media/b.txt": "one", directory("dev") + "b.txt": "one"})
		s.copied("dev", "complete", 1, nil)
		s.nothingRefused()

		// What somebody has put at the old name is theirs.
		s.putStranger(directory("dev") + "b.txt")
		s.prod.Publish(s.Rename("m1", "b.txt", "c.txt"))
		dev.Publish(created("dev", ""))
		s.Work()
		s.holds(map[string]string{"media/c.txt": "one", directory("dev") + "b.txt": "a stranger's", directory("dev") + "c.txt": "one"})
	})
}

func TestTargetInAnotherAccountFailsItsItems(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newScene(t, db)
		dev := s.prod.In("dev")
		s.prod.Publish(s.Upload("m1", "a.txt", "one"))
		s.Work()
		s.own(dev, "media")
		owner, other := "123456789012", "210987654321"
		s.prod.Set(integration.Change{BucketOwner: &owner})
		dev.Set(integration.Change{BucketOwner: &other})
		dev.Publish(created("dev", ""))
		s.Work()
		s.copied("dev", "incomplete", 0, map[string]string{"m1": "other_account"})
	})
}
