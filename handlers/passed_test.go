package handlers_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// A name passes from a media whose upload died after it had written to another.
func TestANameWithALeftoverPassesToAnotherMedia(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		leave(p, put, p.Upload("m1", "b.txt", "lost"))
		ids := run(p, p.Rename("m1", "b.txt", "c.txt"), p.Upload("m2", "b.txt", "two"))
		wantStates(t, p, ids, "dead predecessor_dead", "completed done")
		wantContents(t, p, contents{"media/b.txt": "two"})
		wantLedgerTrue(t, p, "m1", "m2")
		more := run(p, p.Delete("m1", "c.txt"))
		wantStates(t, p, more, "completed skipped")
		wantContents(t, p, contents{"media/b.txt": "two"})
		wantPossibleWrites(t, p)
	})
}

// Metadata tells versions apart by the second, and events may have the same one:
// what a dead event has left isn't what the next one was to write.
func TestALeftoverOfTheSameSecondIsNotTakenForOnesOwn(t *testing.T) {
	soon := func(of events.Version) events.Version { return events.NewVersion(of.Time().Add(time.Millisecond)) }
	cases := []struct {
		name string
		dead func(p *stage.Place) events.MediaUploaded
		next func(p *stage.Place, dead events.Version) events.Event
		want contents
	}{
		{
			name: "renamed, of the same version",
			dead: func(p *stage.Place) events.MediaUploaded { return p.Upload("m1", "b.txt", "two") },
			next: func(p *stage.Place, dead events.Version) events.Event {
				e := p.Rename("m1", "a.txt", "b.txt")
				e.Version = dead
				return e
			},
			want: contents{"media/b.txt": "one"},
		},
		{
			name: "uploaded, of the same version",
			dead: func(p *stage.Place) events.MediaUploaded { return p.Upload("m1", "a.txt", "first") },
			next: func(p *stage.Place, dead events.Version) events.Event {
				e := p.Upload("m1", "a.txt", "last!")
				e.Version, e.ChecksumSHA256 = dead, ""
				return e
			},
			want: contents{"media/a.txt": "last!"},
		},
		{
			name: "uploaded, where another media left it",
			dead: func(p *stage.Place) events.MediaUploaded { return p.Upload("m2", "b.txt", "first") },
			next: func(p *stage.Place, dead events.Version) events.Event {
				e := p.Upload("m3", "b.txt", "last!")
				e.Version, e.ChecksumSHA256 = soon(dead), ""
				return e
			},
			want: contents{"media/a.txt": "one", "media/b.txt": "last!"},
		},
		{
			name: "renamed, where another media left it",
			dead: func(p *stage.Place) events.MediaUploaded { return p.Upload("m2", "b.txt", "two") },
			next: func(p *stage.Place, dead events.Version) events.Event {
				e := p.Rename("m1", "a.txt", "b.txt")
				e.Version = soon(dead)
				return e
			},
			want: contents{"media/b.txt": "one"},
		},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				run(p, p.Upload("m1", "a.txt", "one"))
				dead := tc.dead(p)
				dead.ChecksumSHA256 = ""
				leave(p, put, dead)
				ids := run(p, tc.next(p, dead.Version))
				wantStates(t, p, ids, "completed done")
				wantContents(t, p, tc.want)
				wantLedgerTrue(t, p, "m1", "m3")
			})
		}
	})
}

// That it has run before doesn't make another event's leftover its own.
func TestARenameThatFailedOnceTakesNoLeftoverForItsOwn(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		dead, rename := p.Upload("m1", "b.txt", "two"), p.Rename("m1", "a.txt", "b.txt")
		rename.Version = dead.Version
		leave(p, put, dead)
		p.AWS.Inject(awslocal.Rule{API: copied, Times: 3, Status: 500, Code: "InternalError"})
		ids := run(p, rename)
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
		wantLedgerTrue(t, p, "m1")
	})
}

// What another media's event has written, and nobody recorded yet, looks like what
// the earlier event of the same second left there.
func TestSettlingWaitsForWhatAnotherMediaIsWriting(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"), p.Upload("m2", "x.txt", "old"))
		lost, next := p.Upload("m1", "b.txt", "lost"), p.Upload("m2", "b.txt", "two")
		next.Version = events.NewVersion(lost.Version.Time().Add(time.Millisecond))
		leave(p, put, lost)

		reached, letGo := hold(p, deleted, "media/x.txt")
		upload := p.Publish(next)
		p.Start()
		reached()
		remove := p.Publish(p.Delete("m1", "a.txt"))
		p.Await("the delete", func() bool {
			e := p.Event(remove)
			return e.State == "completed" || e.Resources != nil && strings.Contains(*e.Resources, outbox.NameResource("b.txt"))
		})
		letGo()
		p.Await("both", func() bool { return p.Event(upload).State == "completed" && p.Event(remove).State == "completed" })
		wantStates(t, p, []string{upload, remove}, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "two"})
		wantLedgerTrue(t, p, "m1", "m2")
		wantPossibleWrites(t, p)
	})
}

// The other way round: the name's next event waits until it was settled there.
func TestANameWaitsForWhatIsSettledThere(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		lost := p.Upload("m1", "b.txt", "lost")
		leave(p, put, lost)
		rename := p.Rename("m1", "b.txt", "c.txt")
		rename.Version = events.NewVersion(lost.Version.Time().Add(100 * time.Millisecond))
		leave(p, copied, rename)
		next := p.Upload("m2", "b.txt", "two")
		next.Version = events.NewVersion(lost.Version.Time().Add(200 * time.Millisecond))

		reached, letGo := hold(p, deleted, "media/b.txt")
		remove := p.Publish(p.Delete("m1", "c.txt"))
		p.Start()
		reached()
		upload := p.Publish(next)
		other := p.Publish(p.Upload("m3", "other.txt", "three"))
		p.Await("the upload of another name", func() bool { return p.Event(other).State == "completed" })
		if s := p.Event(upload).State; s == "completed" {
			t.Errorf("the upload is %s while a leftover at its key is being deleted", s)
		}
		letGo()
		p.Await("both", func() bool { return p.Event(upload).State == "completed" && p.Event(remove).State == "completed" })
		wantStates(t, p, []string{upload, remove}, "completed done", "completed done")
		wantContents(t, p, contents{"media/b.txt": "two", "media/other.txt": "three"})
		wantLedgerTrue(t, p, "m1", "m2", "m3")
	})
}

// What is remembered of possible writes locks the settings: nothing is where
// nothing can be left.
func TestNothingIsRememberedOfAReplayThatFindsNothingLeft(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := leave(p, put, p.Upload("m1", "a.txt", "lost"))
		run(p, p.Delete("m1", "a.txt"))
		wantPossibleWrites(t, p)
		retry(p, ids...)
		finish(p.Stage)
		wantStates(t, p, ids, "completed superseded")
		wantContents(t, p, contents{})
		wantPossibleWrites(t, p)
		if _, err := p.Settings.Set(t.Context(), integration.Change{
			ServiceID: p.Service, Prefix: ref("other"), SkipTest: true, Reason: "test", Actor: "test",
		}); err != nil {
			t.Errorf("nothing is left, and yet: %v", err)
		}
	})
}

func TestNothingIsRememberedOfAReplayWhoseKeyIsAnothersByNow(t *testing.T) {
	cases := []struct {
		name string
		now  func(p *stage.Place, lost events.MediaUploaded)
		want contents
		call map[string]int
	}{
		{"a later event's of the media", func(p *stage.Place, _ events.MediaUploaded) {
			run(p, p.Upload("m1", "a.txt", "new"))
		}, contents{"media/a.txt": "new"}, map[string]int{}},
		{"another media's, of the same second", func(p *stage.Place, lost events.MediaUploaded) {
			other := p.Upload("m2", "a.txt", "two")
			other.Version = events.NewVersion(lost.Version.Time().Add(time.Millisecond))
			run(p, p.Delete("m1", "a.txt"), other)
		}, contents{"media/a.txt": "two"}, map[string]int{}},
		{"a stranger's", func(p *stage.Place, _ events.MediaUploaded) {
			run(p, p.Delete("m1", "a.txt"))
			stranger(p, "media/a.txt", "theirs")
		}, contents{"media/a.txt": "theirs"}, map[string]int{head: 1}},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				lost := p.Upload("m1", "a.txt", "lost")
				ids := leave(p, put, lost)
				tc.now(p, lost)
				p.AWS.ResetCounts()
				retry(p, ids...)
				finish(s)
				wantStates(t, p, ids, "completed superseded")
				wantContents(t, p, tc.want)
				wantPossibleWrites(t, p)
				if diff := cmp.Diff(tc.call, calls(p)); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
			})
		}
	})
}

func TestNothingIsRememberedOfARenameOfNothing(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		discard(p, leave(p, put, p.Upload("m1", "a.txt", "lost"))...)
		p.AWS.Inject(awslocal.Rule{API: head, Times: 3, Status: 500, Code: "InternalError"})
		ids := run(p, p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "completed skipped")
		wantContents(t, p, contents{})
		wantPossibleWrites(t, p)
	})
}
