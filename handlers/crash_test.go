package handlers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/stage"
	"github.com/ownbucket/ownbucket/worker"
)

const (
	put     = "s3:PutObject"
	copied  = "s3:CopyObject"
	deleted = "s3:DeleteObject"
	head    = "s3:HeadObject"
)

// big is more than what is verified in memory: it is streamed, and can be read
// only once.
var big = strings.Repeat("0123456789abcdef", 1<<16+1)

// doomed is a worker with a database handle of its own, to be taken away.
type doomed struct {
	s    *stage.Stage
	db   *database.DB
	stop context.CancelFunc
	done chan error
}

func startDoomed(s *stage.Stage, url string) *doomed {
	s.T.Helper()
	db, err := database.Open(s.T.Context(), url, database.DefaultSchema)
	if err != nil {
		s.T.Fatal(err)
	}
	config := s.Config
	config.DB, config.Name = db, "doomed"
	config.LeaseDuration, config.Grace = time.Second, time.Millisecond
	w, err := worker.New(s.T.Context(), config)
	if err != nil {
		s.T.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(s.T.Context()))
	d := &doomed{s: s, db: db, stop: stop, done: make(chan error, 1)}
	go func() {
		d.done <- w.Run(ctx)
		close(d.done)
	}()
	s.T.Cleanup(d.end)
	return d
}

func (d *doomed) end() {
	d.stop()
	<-d.done
}

// cutOff takes the database away: the worker can neither renew nor record.
func (d *doomed) cutOff() {
	d.s.T.Helper()
	if err := d.db.Close(); err != nil {
		d.s.T.Error(err)
	}
}

// kill ends the worker without a trace in the database, as SIGKILL would, and
// lets its leases lapse at once.
func (d *doomed) kill() {
	d.s.T.Helper()
	d.cutOff()
	d.end()
	if _, err := d.s.DB.ExecContext(d.s.T.Context(), d.s.DB.SQL(
		`UPDATE {lanes} SET leased_until = 0 WHERE leased_by IS NOT NULL`)); err != nil {
		d.s.T.Fatal(err)
	}
}

// hang has the next such call take effect without an answer. The returned
// function waits for the effect.
func hang(p *stage.Place, api, key string) (effect func()) {
	p.T.Helper()
	p.AWS.Inject(awslocal.Rule{API: api, Bucket: p.Bucket, Key: key, Times: 1, AfterEffect: true, Hang: true})
	before, _, err := p.AWS.GetDirect(p.Bucket, key)
	existed := err == nil
	return func() {
		p.T.Helper()
		p.Await("the effect of "+api, func() bool {
			after, _, err := p.AWS.GetDirect(p.Bucket, key)
			return existed != (err == nil) || existed && after.Modified != before.Modified
		})
	}
}

func TestACrashAfterAnyCallIsTakenUp(t *testing.T) {
	one := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "one") }
	stream := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", big) }
	vague := func(p *stage.Place) events.Event {
		e := p.Upload("m1", "a.txt", "one")
		e.Size, e.ChecksumSHA256 = nil, ""
		return e
	}
	again := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "two") }
	elsewhere := func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") }
	rename := func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") }
	stay := func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "a.txt") }
	remove := func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") }
	// The worker crashes after the call at the key; an upload's source is then gone.
	cases := []struct {
		name     string
		uploaded bool // a.txt was, before
		event    func(p *stage.Place) events.Event
		api, key string
		want     contents
	}{
		{"upload, PUT", false, one, put, "media/a.txt", contents{"media/a.txt": "one"}},
		{"upload of a stream, PUT", false, stream, put, "media/a.txt", contents{"media/a.txt": big}},
		{"upload without size and checksum, PUT", false, vague, put, "media/a.txt", contents{"media/a.txt": "one"}},
		{"re-upload, PUT", true, again, put, "media/a.txt", contents{"media/a.txt": "two"}},
		{"re-upload under another name, PUT", true, elsewhere, put, "media/b.txt", contents{"media/b.txt": "two"}},
		{"re-upload under another name, DELETE", true, elsewhere, deleted, "media/a.txt", contents{"media/b.txt": "two"}},
		{"rename, COPY", true, rename, copied, "media/b.txt", contents{"media/b.txt": "one"}},
		{"rename, DELETE", true, rename, deleted, "media/a.txt", contents{"media/b.txt": "one"}},
		{"rename to the same name, COPY", true, stay, copied, "media/a.txt", contents{"media/a.txt": "one"}},
		{"delete, DELETE", true, remove, deleted, "media/a.txt", contents{}},
	}
	eachURL(t, func(t *testing.T, s *stage.Stage, url string) {
		customers := places(s, cases)
		for i, tc := range cases {
			if tc.uploaded {
				customers[i].Publish(one(customers[i]))
			}
		}
		finish(s)
		s.AWS.ResetCounts()
		ids, sources, effects := make([][]string, len(cases)), []string{}, []func(){}
		for i, tc := range cases {
			event := tc.event(customers[i])
			if upload, ok := event.(events.MediaUploaded); ok {
				sources = append(sources, upload.Source)
			}
			effects = append(effects, hang(customers[i], tc.api, tc.key))
			ids[i] = publish(customers[i], event)
		}
		crashing := startDoomed(s, url)
		for _, effect := range effects {
			effect()
		}
		crashing.kill()
		s.AWS.ClearFaults()
		for _, source := range sources {
			s.RemoveFile(source)
		}
		finish(s)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				wantStates(t, p, ids[i], "completed done")
				wantContents(t, p, tc.want)
				wantLedgerTrue(t, p, "m1")
				if got := calls(p)[put]; got > 1 {
					t.Errorf("%d PUTs, although the first had its effect", got)
				}
			})
			ids[i] = publish(customers[i], s.Upload("m1", "c.txt", "three"))
		}
		finish(s)
		for i, tc := range cases {
			t.Run(tc.name+", and life goes on", func(t *testing.T) {
				wantStates(t, customers[i], ids[i], "completed done")
				wantContents(t, customers[i], contents{"media/c.txt": "three"})
				wantPossibleWrites(t, customers[i])
			})
		}
	})
}

// The answer is lost, but the worker lives: it learns what became of its call.
func TestALostResponseIsNoSecondEffect(t *testing.T) {
	one := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "one") }
	stream := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", big) }
	again := func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "two") }
	rename := func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") }
	remove := func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") }
	cases := []struct {
		name     string
		uploaded bool // a.txt was, before
		event    func(p *stage.Place) events.Event
		api      string
		losses   int // of answers one after the other; the SDK tries three times
		want     contents
	}{
		{"PUT, once", false, one, put, 1, contents{"media/a.txt": "one"}},
		{"PUT, by all tries", false, one, put, 3, contents{"media/a.txt": "one"}},
		{"PUT of a stream, once", false, stream, put, 1, contents{"media/a.txt": big}},
		{"PUT of a stream, by all tries", false, stream, put, 3, contents{"media/a.txt": big}},
		{"PUT over the older object, once", true, again, put, 1, contents{"media/a.txt": "two"}},
		{"PUT over the older object, by all tries", true, again, put, 3, contents{"media/a.txt": "two"}},
		{"COPY, once", true, rename, copied, 1, contents{"media/b.txt": "one"}},
		{"COPY, by all tries", true, rename, copied, 3, contents{"media/b.txt": "one"}},
		{"DELETE of a rename, once", true, rename, deleted, 1, contents{"media/b.txt": "one"}},
		{"DELETE of a rename, by all tries", true, rename, deleted, 3, contents{"media/b.txt": "one"}},
		{"DELETE, once", true, remove, deleted, 1, contents{}},
		{"DELETE, by all tries", true, remove, deleted, 3, contents{}},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			if tc.uploaded {
				customers[i].Publish(one(customers[i]))
			}
		}
		finish(s)
		ids := make([][]string, len(cases))
		for i, tc := range cases {
			s.AWS.Inject(awslocal.Rule{API: tc.api, Bucket: customers[i].Bucket, AfterEffect: true, Reset: true, Times: tc.losses})
			ids[i] = publish(customers[i], tc.event(customers[i]))
		}
		finish(s)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				wantStates(t, p, ids[i], "completed done")
				wantContents(t, p, tc.want)
				wantLedgerTrue(t, p, "m1")
				if effects := lostAnswers(p); effects != 1 {
					t.Errorf("%d calls had their effect, want one", effects)
				}
			})
		}
	})
}

// lostAnswers counts the calls that had their effect but no answer.
func lostAnswers(p *stage.Place) int {
	lost := 0
	for _, entry := range p.AWS.Log() {
		if entry.Bucket == p.Bucket && entry.Status == 0 {
			lost++
		}
	}
	return lost
}

func TestACopyThatAnswersWithNothingIsLookedUp(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		p.AWS.Inject(awslocal.Rule{API: copied, Times: 1, AfterEffect: true, Status: 200, Body: ref("")})
		ids := run(p, p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
		wantLedgerTrue(t, p, "m1")
	})
}

func TestAnUploadWithoutItsSourceLeavesTheOlderObject(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		gone := p.Upload("m1", "a.txt", "new")
		gone.Version = events.NewVersion(gone.Version.Time().Add(time.Hour))
		p.RemoveFile(gone.Source)
		ids := run(p, p.Upload("m1", "a.txt", "good"), gone)
		wantStates(t, p, ids, "completed done", "dead source_gone")
		wantContents(t, p, contents{"media/a.txt": "good"})
		wantPossibleWrites(t, p)
	})
}
