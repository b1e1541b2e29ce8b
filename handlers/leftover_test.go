package handlers_test

import (
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// leave publishes events and lets each die after such a call had its effect:
// no answer comes, no try after it gets through, and there is one attempt.
func leave(p *stage.Place, api string, list ...events.Event) []string {
	p.T.Helper()
	lost := p.AWS.Inject(awslocal.Rule{API: api, Bucket: p.Bucket, AfterEffect: true, Reset: true, Times: len(list)})
	broken := p.AWS.Inject(awslocal.Rule{API: api, Bucket: p.Bucket, Reset: true})
	defer lost.Remove()
	defer broken.Remove()
	attempts := p.Config.RetryAttempts
	p.Config.RetryAttempts = 1
	defer func() { p.Config.RetryAttempts = attempts }()
	ids := run(p, list...)
	for _, id := range ids {
		if e := p.Event(id); e.State != "dead" || *e.ErrorClass != "transient" {
			p.T.Fatalf("%s, not dead of a transient failure\n%s", e, p.Dump())
		}
	}
	return ids
}

func TestWhatADeadEventMayHaveWrittenGoesWithTheNextEvent(t *testing.T) {
	cases := []struct {
		name  string
		dead  func(p *stage.Place)
		next  func(p *stage.Place) events.Event
		state string
		want  contents
	}{
		{
			name:  "an upload, deleted",
			dead:  func(p *stage.Place) { leave(p, put, p.Upload("m1", "a.txt", "lost")) },
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			state: "completed done", want: contents{},
		},
		{
			name:  "an upload, deleted by a name that it never had",
			dead:  func(p *stage.Place) { leave(p, put, p.Upload("m1", "a.txt", "lost")) },
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "b.txt") },
			state: "completed skipped", want: contents{},
		},
		{
			name:  "an upload, uploaded again",
			dead:  func(p *stage.Place) { leave(p, put, p.Upload("m1", "a.txt", "lost")) },
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "new") },
			state: "completed done", want: contents{"media/a.txt": "new"},
		},
		{
			name:  "an upload, uploaded elsewhere",
			dead:  func(p *stage.Place) { leave(p, put, p.Upload("m1", "a.txt", "lost")) },
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "new") },
			state: "completed done", want: contents{"media/b.txt": "new"},
		},
		{
			name: "two uploads under two names",
			dead: func(p *stage.Place) {
				leave(p, put, p.Upload("m1", "a.txt", "lost"))
				leave(p, put, p.Upload("m1", "b.txt", "lost too"))
			},
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "c.txt", "new") },
			state: "completed done", want: contents{"media/c.txt": "new"},
		},
		{
			name: "a discarded upload, then a rename of what never was",
			dead: func(p *stage.Place) {
				discard(p, leave(p, put, p.Upload("m1", "a.txt", "lost"))...)
			},
			next:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			state: "completed skipped", want: contents{},
		},
		{
			name: "a re-upload, deleted",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, put, p.Upload("m1", "a.txt", "lost"))
			},
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			state: "completed done", want: contents{},
		},
		{
			name: "a re-upload, uploaded again",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, put, p.Upload("m1", "a.txt", "lost"))
			},
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "new") },
			state: "completed done", want: contents{"media/a.txt": "new"},
		},
		{
			// The older bytes are overwritten: the newer are better than none.
			name: "a re-upload, renamed",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				html := p.Upload("m1", "a.txt", "written although dead")
				html.ContentType = "text/html"
				leave(p, put, html)
			},
			next:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			state: "completed done", want: contents{"media/b.txt": "written although dead"},
		},
		{
			name: "a re-upload under another name, renamed",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, put, p.Upload("m1", "b.txt", "lost"))
			},
			next:  func(p *stage.Place) events.Event { return p.Rename("m1", "b.txt", "c.txt") },
			state: "completed done", want: contents{"media/c.txt": "one"},
		},
		{
			name: "a re-upload under another name, renamed to that",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, put, p.Upload("m1", "b.txt", "two"))
			},
			next:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			state: "completed done", want: contents{"media/b.txt": "one"},
		},
		{
			name: "a rename after its COPY, renamed",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, copied, p.Rename("m1", "a.txt", "b.txt"))
			},
			next:  func(p *stage.Place) events.Event { return p.Rename("m1", "b.txt", "c.txt") },
			state: "completed done", want: contents{"media/c.txt": "one"},
		},
		{
			name: "a rename after its COPY, deleted",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, copied, p.Rename("m1", "a.txt", "b.txt"))
			},
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "b.txt") },
			state: "completed done", want: contents{},
		},
		{
			name: "a rename after its DELETE, deleted",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, deleted, p.Rename("m1", "a.txt", "b.txt"))
			},
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "b.txt") },
			state: "completed done", want: contents{},
		},
		{
			name: "a rename after its DELETE, uploaded again",
			dead: func(p *stage.Place) {
				run(p, p.Upload("m1", "a.txt", "one"))
				leave(p, deleted, p.Rename("m1", "a.txt", "b.txt"))
			},
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "c.txt", "new") },
			state: "completed done", want: contents{"media/c.txt": "new"},
		},
		{
			name: "an upload whose object the customer replaced",
			dead: func(p *stage.Place) {
				leave(p, put, p.Upload("m1", "a.txt", "lost"))
				stranger(p, "media/a.txt", "theirs")
			},
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			state: "completed skipped", want: contents{"media/a.txt": "theirs"},
		},
		{
			name: "an upload whose key another media has by now, with the same mark",
			dead: func(p *stage.Place) {
				lost := p.Upload("m1", "a.txt", "lost")
				leave(p, put, lost)
				p.AWS.DeleteDirect(p.Bucket, "media/a.txt")
				other := p.Upload("m2", "a.txt", "other")
				other.Version = lost.Version
				run(p, other)
			},
			next:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			state: "completed skipped", want: contents{"media/a.txt": "other"},
		},
		{
			name: "an older upload that was tried again in vain",
			dead: func(p *stage.Place) {
				ids := leave(p, put, p.Upload("m1", "a.txt", "lost"))
				run(p, p.Upload("m1", "b.txt", "one"))
				retry(p, ids...)
				finish(p.Stage)
				wantPossibleWrites(p.T.(*testing.T), p)
			},
			next:  func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") },
			state: "completed done", want: contents{"media/b.txt": "two"},
		},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				tc.dead(p)
				ids := run(p, tc.next(p))
				wantStates(t, p, ids, tc.state)
				wantContents(t, p, tc.want)
				wantLedgerTrue(t, p, "m1", "m2")
				wantPossibleWrites(t, p)
			})
		}
	})
}

func TestADiscardedRetryLeavesNothingBehind(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		p.Config.RetryBase = 24 * time.Hour
		p.AWS.Inject(awslocal.Rule{API: put, Times: 1, AfterEffect: true, Reset: true})
		upload := p.Publish(p.Upload("m1", "a.txt", big)) // the SDK doesn't try a stream again
		p.Work()
		if got := p.Event(upload).String(); got != "retryable server_error" {
			t.Fatalf("%s\n%s", got, p.Dump())
		}
		discard(p, upload)
		wantPossibleWrites(t, p, "media/a.txt")
		ids := run(p, p.Upload("m1", "b.txt", "new"))
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "new"})
		wantPossibleWrites(t, p)
	})
}

func TestARetryOfADeadUploadTakesItsObjectUp(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		upload := p.Upload("m1", "a.txt", "one")
		ids := leave(p, put, upload)
		p.RemoveFile(upload.Source)
		p.AWS.ResetCounts()
		retry(p, ids...)
		finish(p.Stage)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/a.txt": "one"})
		wantLedgerTrue(t, p, "m1")
		if got := calls(p)[put]; got != 0 {
			t.Errorf("%d PUTs of what was there", got)
		}
	})
}

// Versions of one second read the same in the metadata. The dead upload's
// object, as long as the older one, isn't the rename's copy.
func TestARenameDoesNotTakeAnUploadOfTheSameSecondForItsCopy(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		lost, rename := p.Upload("m1", "b.txt", "two"), p.Rename("m1", "a.txt", "b.txt")
		rename.Version = events.NewVersion(lost.Version.Time().Add(time.Microsecond))
		leave(p, put, lost)
		ids := run(p, rename)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
		wantLedgerTrue(t, p, "m1")
	})
}

func TestAFailureBeforeTheFirstCallLeavesNoPossibleWrite(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		upload := p.Upload("m1", "a.txt", "one")
		p.RemoveFile(upload.Source)
		ids := run(p, upload)
		wantStates(t, p, ids, "dead source_gone")
		wantPossibleWrites(t, p)
	})
}
