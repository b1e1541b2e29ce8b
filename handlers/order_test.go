package handlers_test

import (
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestAFileNamePassesFromOneMediaToAnother(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := run(p,
			p.Upload("m1", "a.txt", "one"),
			p.Rename("m1", "a.txt", "b.txt"),
			p.Upload("m2", "a.txt", "two"),
			p.Delete("m2", "a.txt"),
			p.Upload("m3", "a.txt", "three"))
		wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one", "media/a.txt": "three"})
		wantKeys(t, p, map[string]string{"m1": "media/b.txt", "m2": "", "m3": "media/a.txt"})
		wantLedgerTrue(t, p, "m1", "m2", "m3")
	})
}

func TestTwoMediaSwapNamesThroughAThird(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := run(p,
			p.Upload("m1", "a.txt", "one"), p.Upload("m2", "b.txt", "two"),
			p.Rename("m1", "a.txt", "t.txt"), p.Rename("m2", "b.txt", "a.txt"), p.Rename("m1", "t.txt", "b.txt"))
		wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one", "media/a.txt": "two"})
		wantLedgerTrue(t, p, "m1", "m2")
	})
}

func TestARetryOfADeadUploadDoesNotBringADeletedFileBack(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		upload := p.Upload("m1", "a.txt", "one")
		p.RemoveFile(upload.Source)
		ids := run(p, upload, p.Delete("m1", "a.txt"))
		wantStates(t, p, ids, "dead source_gone", "completed skipped")

		p.PutFile(upload.Source, "one")
		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids, "completed superseded", "completed skipped")
		wantContents(t, p, contents{})
		wantKeys(t, p, map[string]string{"m1": ""})
	})
}

func TestAnOlderEventTouchesNothing(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "first"))
		upload := p.Upload("m1", "a.txt", "old")
		p.RemoveFile(upload.Source)
		p.Config.RetryAttempts = 1
		for _, api := range []string{copied, deleted} {
			p.AWS.Inject(awslocal.Rule{API: api, Times: 3, Status: 500, Code: "InternalError"}) // the SDK tries three times
		}
		ids := run(p, upload, p.Rename("m1", "a.txt", "c.txt"), p.Delete("m1", "a.txt"))
		wantStates(t, p, ids, "dead source_gone", "dead server_error", "dead server_error")
		ids = append(ids, run(p, p.Upload("m1", "b.txt", "new"))...)
		before := p.Ledger("m1")
		p.AWS.ResetCounts()
		p.PutFile(upload.Source, "old")
		retry(p, ids[:3]...)
		finish(p.Stage)
		wantStates(t, p, ids, "completed superseded", "completed superseded", "completed superseded", "completed done")
		wantContents(t, p, contents{"media/b.txt": "new"})
		got := calls(p)
		delete(got, head) // for what an earlier attempt may have left
		if len(got) > 0 {
			t.Errorf("superseded events called %v", got)
		}
		if after := p.Ledger("m1"); *after.Key != *before.Key || after.Version != before.Version || after.Sequence != before.Sequence {
			t.Errorf("the ledger changed from %+v to %+v", before, after)
		}
	})
}

func TestOfEqualVersionsTheLaterPublishedWins(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		first, second := p.Upload("m1", "a.txt", "first"), p.Upload("m1", "b.txt", "second")
		second.Version = first.Version
		p.RemoveFile(first.Source)
		ids := run(p, first, second)
		wantStates(t, p, ids, "dead source_gone", "completed done")

		p.PutFile(first.Source, "first")
		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids, "completed superseded", "completed done")
		wantContents(t, p, contents{"media/b.txt": "second"})
	})
}

// The CMS's nodes have clocks of their own; its row locks order what is published.
func TestEventsOfFallingVersionsRunInPublishOrder(t *testing.T) {
	eachRefused(t, func(t *testing.T, p *stage.Place) {
		warnings := logged(p)
		newest := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
		at := func(earlier time.Duration) events.Version { return events.NewVersion(newest.Add(-earlier)) }
		upload, rename, again, remove := p.Upload("m1", "a.txt", "one"), p.Rename("m1", "a.txt", "b.txt"),
			p.Upload("m1", "b.txt", "two"), p.Delete("m1", "b.txt")
		upload.Version, rename.Version, again.Version, remove.Version = at(0), at(3*time.Minute), at(4*time.Minute), at(4*time.Minute+time.Microsecond)

		ids := run(p, upload, rename)
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
		wantLedgerTrue(t, p, "m1")
		ids = append(ids, run(p, again)...)
		wantContents(t, p, contents{"media/b.txt": "two"})
		wantLedgerTrue(t, p, "m1")
		ids = append(ids, run(p, remove, p.Upload("m2", "b.txt", "another media's"))...)
		wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "another media's"})

		// Each fall is warned of, and nothing else.
		for i, id := range ids {
			want := 0
			if i > 0 && i < 4 {
				want = 1
			}
			if got := warnings.count("version of a media has fallen", id); got != want {
				t.Errorf("event %d was warned of %d times, want %d", i, got, want)
			}
		}
	})
}

// The first upload's PUT may or may not have had its effect. Without checksum
// and size, what stands at the key must not be taken for the second's: both
// versions read the same in the metadata.
func TestARetryDoesNotTakeAnotherUploadOfTheSameSecondForItsOwn(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		second := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
		first, last := p.Upload("m1", "a.txt", "first"), p.Upload("m1", "a.txt", "last!")
		first.Version, last.Version = events.NewVersion(second), events.NewVersion(second.Add(time.Microsecond))
		first.ChecksumSHA256, last.ChecksumSHA256 = "", ""

		lost := p.AWS.Inject(awslocal.Rule{API: "s3:PutObject", AfterEffect: true, Status: 500, Code: "InternalError"})
		blind := p.AWS.Inject(awslocal.Rule{API: "s3:HeadObject", Status: 500, Code: "InternalError"})
		p.Config.RetryAttempts = 1
		ids := run(p, first)
		wantStates(t, p, ids, "dead server_error")
		lost.Remove()
		blind.Remove()

		p.AWS.Inject(awslocal.Rule{API: "s3:PutObject", Times: 3, Status: 500, Code: "InternalError"})
		p.Config.RetryAttempts = 4
		ids = append(ids, run(p, last)...)
		wantStates(t, p, ids, "dead server_error", "completed done")
		wantContents(t, p, contents{"media/a.txt": "last!"})
		wantLedgerTrue(t, p, "m1")
	})
}

func TestRenameToTheSameNameKeepsTheObject(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		rename := p.Rename("m1", "a.txt", "a.txt")
		upload := p.Upload("m1", "a.txt", "one")
		rename.Version = p.Version()
		ids := run(p, upload, rename, p.Upload("m1", "a.txt", "two"))
		wantStates(t, p, ids, "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/a.txt": "two"})
		wantLedgerTrue(t, p, "m1")
	})
}

func TestWhatARenameAndADeleteTouchIsTheLedgersKeyNotThePayloadsName(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := run(p,
			p.Upload("m1", "a.txt", "one"), p.Upload("m2", "other.txt", "two"),
			p.Rename("m1", "other.txt", "b.txt"))
		wantContents(t, p, contents{"media/b.txt": "one", "media/other.txt": "two"})
		ids = append(ids, run(p, p.Delete("m1", "other.txt"))...)
		wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/other.txt": "two"})
	})
}

func TestRenameAndDeleteOfAMediaThatWeNeverHadAreSkipped(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		stranger(p, "media/a.txt", "somebody else's")
		rename := p.Rename("m1", "a.txt", "b.txt")
		ids := run(p, rename, p.Delete("m2", "a.txt"))
		wantStates(t, p, ids, "completed skipped", "completed skipped")
		wantContents(t, p, contents{"media/a.txt": "somebody else's"})
		wantKeys(t, p, map[string]string{"m1": "none", "m2": ""})
	})
}

func TestDeleteWithoutARowRemovesOnlyWhatIsOurs(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		// The database lost the row; the object is of the delete's version.
		remove := p.Delete("m1", "a.txt")
		stamped := awslocal.Stranger{Metadata: map[string]string{
			"upload-source": "microcms", "microcms-service": service,
			"microcms-version": remove.Version.Time().Format("20060102150405"), "microcms-status": "public",
		}}
		if _, err := p.AWS.PutDirect(p.Bucket, "media/a.txt", []byte("ours"), stamped); err != nil {
			t.Fatal(err)
		}
		ids := run(p, remove)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{})
		wantKeys(t, p, map[string]string{"m1": ""})
	})
}

func TestARenameWaitsForItsDeadUploadToBeReplayed(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		upload := p.Upload("m1", "a.txt", "one")
		p.RemoveFile(upload.Source)
		ids := run(p, upload, p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "dead source_gone", "dead predecessor_dead")
		wantContents(t, p, contents{})

		p.PutFile(upload.Source, "one")
		retry(p, ids[1], ids[0]) // publish order counts, not the operator's
		finish(p.Stage)
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
	})
}

func TestAKeyOfAnotherMediaIsTakenForGood(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := run(p,
			p.Upload("m1", "a.txt", "one"), p.Upload("m2", "b.txt", "two"),
			p.Upload("m3", "a.txt", "three"), p.Rename("m2", "b.txt", "a.txt"))
		wantStates(t, p, ids, "completed done", "completed done", "dead key_taken", "dead key_taken")
		wantContents(t, p, contents{"media/a.txt": "one", "media/b.txt": "two"})
	})
}

func TestAKeyIsWaitedForWhileAnEarlierEventOfItsHolderMayFreeIt(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		p.AWS.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 4, Status: 503, Code: "InternalError"})
		// The rename's payload doesn't tell that it frees a.txt.
		ids := run(p, p.Rename("m1", "unknown.txt", "b.txt"), p.Upload("m2", "a.txt", "two"))
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one", "media/a.txt": "two"})
		if got := p.Event(ids[1]).AttemptCount; got != 1 {
			t.Errorf("waiting cost the upload attempts: %d", got)
		}
	})
}

func TestARenameWaitsForItsKeyTooWhileAnEarlierEventOfItsHolderMayFreeIt(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"), p.Upload("m2", "c.txt", "two"))
		p.AWS.Inject(awslocal.Rule{API: copied, Key: "media/b.txt", Times: 4, Status: 503, Code: "InternalError"})
		ids := run(p, p.Rename("m1", "unknown.txt", "b.txt"), p.Rename("m2", "c.txt", "a.txt"))
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one", "media/a.txt": "two"})
	})
}

// Two services share a bucket and prefix, and so the keys.
func TestAKeyIsWaitedForWhileAnEarlierEventOfAnotherServiceMayFreeIt(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		p.Config.RetryBase = 24 * time.Hour
		other := p.Neighbour("SERVICE#other")
		run(p, p.Upload("m1", "a.txt", "one"))
		p.AWS.Inject(awslocal.Rule{API: deleted, Times: 3, Status: 500, Code: "InternalError"})
		ids := publish(p, p.Delete("m1", "a.txt"))
		p.Work()
		wantStates(t, p, ids, "retryable server_error")
		ids = append(ids, publish(other, p.Upload("m1", "a.txt", "two"))...)
		p.Start()
		p.Await("the upload waiting, or over", func() (waits bool) {
			if err := p.DB.GetContext(t.Context(), &waits, p.DB.SQL(`SELECT next_attempt_at IS NOT NULL OR finished_at IS NOT NULL
				FROM {outbox} WHERE CAST(event_id AS text) = ?`), ids[1]); err != nil {
				t.Fatal(err)
			}
			return waits
		})
		retry(p, ids[0])
		p.Await("the upload", func() bool { return p.Event(ids[1]).State != "available" && p.Event(ids[1]).State != "running" })
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/a.txt": "two"})
		if got := p.Event(ids[1]).AttemptCount; got != 1 {
			t.Errorf("waiting cost the upload attempts: %d", got)
		}
	})
}

func TestAKeyIsNotWaitedForWhenOnlyLaterEventsOfItsHolderCouldFreeIt(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		ids := run(p, p.Upload("m2", "a.txt", "two"), p.Delete("m1", "a.txt"))
		wantStates(t, p, ids, "dead key_taken", "completed done")
		wantContents(t, p, contents{})

		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids, "completed done", "completed done")
		wantContents(t, p, contents{"media/a.txt": "two"})
	})
}

func TestPinnedNamesRefuseRenamesAndReuploadsUnderAnotherName(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		p.Set(integration.Change{PinFileNames: ref(true)})
		p.AWS.ResetCounts()
		reupload := p.Upload("m1", "b.txt", "two")
		reupload.PreviousFileName = "a.txt"
		unknown := p.Upload("m2", "d.txt", "two")
		unknown.PreviousFileName = "c.txt"
		ids := run(p, p.Rename("m1", "a.txt", "b.txt"), reupload, unknown)
		wantStates(t, p, ids, "dead file_name_pinned", "dead file_name_pinned", "dead file_name_pinned")
		if got := calls(p); len(got) > 0 {
			t.Errorf("the bucket was touched: %v", got)
		}
		wantPossibleWrites(t, p)

		same := p.Upload("m1", "a.txt", "three")
		same.PreviousFileName = "a.txt"
		more := run(p, same, p.Upload("m3", "new.txt", "new"), p.Rename("m3", "new.txt", "new.txt"), p.Delete("m1", "a.txt"))
		wantStates(t, p, more, "completed done", "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"media/new.txt": "new"})
	})
}
