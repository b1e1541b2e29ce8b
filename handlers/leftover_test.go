package handlers_test

import (
	"context"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/outbox"
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

// Without a checksum it is the metadata that tells, and what is remembered: the
// possible write at the key is this event's own, that elsewhere isn't there.
func TestARetryOfADeadUploadWithoutAChecksumTakesItsObjectUp(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		elsewhere, upload := p.Upload("m1", "b.txt", "two"), p.Upload("m1", "a.txt", "one")
		upload.Version = events.NewVersion(elsewhere.Version.Time().Add(time.Millisecond))
		upload.ChecksumSHA256 = ""
		leave(p, put, elsewhere)
		ids := leave(p, put, upload)
		p.RemoveFile(upload.Source)
		retry(p, ids...)
		finish(p.Stage)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/a.txt": "one"})
		wantLedgerTrue(t, p, "m1")
		wantPossibleWrites(t, p)
	})
}

// What a retry finds with its version at its key may be something else's all the
// same. It is overwritten, since it is ours.
func TestARetryTakesNothingUpButWhatItsOwnAttemptWrote(t *testing.T) {
	cases := []struct {
		name   string
		before func(p *stage.Place, next *events.MediaUploaded)
		during string // what somebody puts under the event's metadata while it fails
	}{
		{"the ledger's object of the same second", func(p *stage.Place, next *events.MediaUploaded) {
			first := p.Upload("m1", "a.txt", "first")
			next.Version = events.NewVersion(first.Version.Time().Add(time.Millisecond))
			next.ChecksumSHA256 = ""
			run(p, first)
		}, ""},
		{"an older version of the same bytes", func(p *stage.Place, next *events.MediaUploaded) {
			leave(p, put, p.Upload("m1", "a.txt", "last!"))
			next.Version = p.Version()
		}, ""},
		{"another length", func(_ *stage.Place, next *events.MediaUploaded) { next.ChecksumSHA256 = "" }, "longer"},
		{"other bytes of the same length", func(*stage.Place, *events.MediaUploaded) {}, "LAST!"},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				next := p.Upload("m1", "a.txt", "last!")
				tc.before(p, &next)
				version := bucket.FormatVersion(next.Version.Micros())
				p.AWS.Inject(awslocal.Rule{API: put, Bucket: p.Bucket, Times: 3, Status: 500, Code: "InternalError",
					Before: func(context.Context, awslocal.Call) {
						if tc.during == "" {
							return
						}
						if _, err := p.AWS.PutDirect(p.Bucket, "media/a.txt", []byte(tc.during), awslocal.Stranger{Metadata: map[string]string{
							"upload-source": "microcms", "microcms-service": p.Service, "microcms-version": version,
						}}); err != nil {
							t.Error(err)
						}
					}})
				ids := run(p, next)
				wantStates(t, p, ids, "completed done")
				wantContents(t, p, contents{"media/a.txt": "last!"})
				wantLedgerTrue(t, p, "m1")
				if got := p.AWS.Objects(p.Bucket)[0].Metadata["microcms-version"]; got != version {
					t.Errorf("the object is of version %s, want %s", got, version)
				}
			})
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

// The bytes are equal, but the metadata tells another version.
func TestARenameOverALeftoverOfEqualBytesIsOfItsOwnVersion(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		leave(p, put, p.Upload("m1", "b.txt", "one"))
		rename := p.Rename("m1", "a.txt", "b.txt")
		ids := run(p, rename)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
		wantLedgerTrue(t, p, "m1")
		want := bucket.FormatVersion(rename.Version.Micros())
		if got := p.AWS.Objects(p.Bucket)[0].Metadata["microcms-version"]; got != want {
			t.Errorf("the object is of version %s, want %s", got, want)
		}
	})
}

// A rename whose source is gone is finished by its own copy only.
func TestARenameIsNotFinishedByALeftover(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		leave(p, put, p.Upload("m1", "b.txt", "two"))
		p.AWS.DeleteDirect(p.Bucket, "media/a.txt")
		ids := run(p, p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "dead object_missing")
		wantKeys(t, p, map[string]string{"m1": "media/a.txt"})
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

// What was written is known although the event dies of something else, at once.
func TestAnEventThatDiesAfterItsWriteLeavesNothingBehind(t *testing.T) {
	cases := []struct {
		name  string
		event func(p *stage.Place) events.Event
	}{
		{"re-upload", func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") }},
		{"rename", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") }},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				run(p, p.Upload("m1", "a.txt", "one"))
				refused := p.AWS.Inject(awslocal.Rule{API: deleted, Bucket: p.Bucket, Status: 400, Code: "NeverHeardOf"})
				ids := run(p, tc.event(p))
				wantStates(t, p, ids, "dead refused")
				wantPossibleWrites(t, p, "media/b.txt")
				refused.Remove()
				more := run(p, p.Upload("m1", "c.txt", "three"))
				wantStates(t, p, more, "completed done")
				wantContents(t, p, contents{"media/c.txt": "three"})
				wantPossibleWrites(t, p)
			})
		}
	})
}

func TestADeletionThatDiesHasWrittenNothing(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		p.AWS.Inject(awslocal.Rule{API: deleted, Status: 500, Code: "InternalError"})
		ids := run(p, p.Delete("m1", "a.txt"))
		wantStates(t, p, ids, "dead server_error")
		wantPossibleWrites(t, p)
	})
}

// Nobody can say what an event has written that brought its workers down.
func TestAnEventThatBroughtWorkersDownLeavesNothingBehind(t *testing.T) {
	eachURL(t, func(t *testing.T, s *stage.Stage, url string) {
		s.Config.RetryAttempts = 1
		p := s.Customer(service, customer, "media")
		written := hang(p, put, "media/a.txt")
		ids := publish(p, p.Upload("m1", "a.txt", "lost"))
		crashing := startDoomed(s, url)
		written()
		crashing.kill()
		s.AWS.ClearFaults()
		if err := p.Settings.Pause(t.Context(), p.Service, "", "test", "test"); err != nil {
			t.Fatal(err)
		}
		s.Work() // takes the dead worker's lane over
		if _, err := s.DB.ExecContext(t.Context(), s.DB.SQL(`UPDATE {outbox} SET lapse_count = ?`), outbox.AloneAfter+1); err != nil {
			t.Fatal(err)
		}
		if err := p.Settings.Resume(t.Context(), p.Service, "", "test", "test"); err != nil {
			t.Fatal(err)
		}
		finish(s)
		wantStates(t, p, ids, "dead lease_lapsed")
		wantPossibleWrites(t, p, "media/a.txt")
		more := run(p, p.Upload("m1", "b.txt", "new"))
		wantStates(t, p, more, "completed done")
		wantContents(t, p, contents{"media/b.txt": "new"})
		wantPossibleWrites(t, p)
	})
}

// An event that wasn't tried has written nothing, one whose worker died may have.
func TestADiscardedEventLeavesWhatItMayHaveWrittenOnly(t *testing.T) {
	eachURL(t, func(t *testing.T, s *stage.Stage, url string) {
		p := s.Customer(service, customer, "media")
		written := hang(p, put, "media/a.txt")
		tried := publish(p, p.Upload("m1", "a.txt", "lost"))
		crashing := startDoomed(s, url)
		written()
		crashing.kill()
		s.AWS.ClearFaults()
		if err := p.Settings.Pause(t.Context(), p.Service, "", "test", "test"); err != nil {
			t.Fatal(err)
		}
		s.Work() // notes what the dead worker may have begun
		untried := publish(p, p.Upload("m2", "b.txt", "never"))
		s.Work()
		discard(p, append(tried, untried...)...)
		wantPossibleWrites(t, p, "media/a.txt")
		if err := p.Settings.Resume(t.Context(), p.Service, "", "test", "test"); err != nil {
			t.Fatal(err)
		}
		more := run(p, p.Upload("m1", "c.txt", "new"))
		wantStates(t, p, more, "completed done")
		wantContents(t, p, contents{"media/c.txt": "new"})
		wantPossibleWrites(t, p)
	})
}
