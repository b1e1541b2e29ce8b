package handlers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// hold keeps the next such call from having its effect until it is let go. The
// returned functions wait for the call, and let it have its effect.
func hold(p *stage.Place, api, key string) (reached, letGo func()) {
	p.T.Helper()
	arrived, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	p.T.Cleanup(release)
	held := awslocal.Call{}
	p.AWS.Inject(awslocal.Rule{API: api, Bucket: p.Bucket, Key: key, Times: 1, Before: func(_ context.Context, c awslocal.Call) {
		held = c
		close(arrived)
		<-released
	}})
	reached = func() {
		p.T.Helper()
		select {
		case <-arrived:
		case <-time.After(30 * time.Second):
			p.T.Fatalf("no %s of %s in %s\n%s", api, key, p.Bucket, p.Dump())
		}
	}
	letGo = func() {
		release()
		p.Await("the end of the late "+api, func() bool {
			for _, entry := range p.AWS.Log() {
				if entry.Call == held {
					return true
				}
			}
			return false
		})
	}
	return reached, letGo
}

// A worker was paused, or cut off from its database, while its call was on the
// way. Another took over and went on. Then the old call arrives. SQLite has
// one worker at a time.
func TestTheLateCallOfAWorkerThatLostItsLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name      string
		before    func(p *stage.Place) []events.Event
		event     func(p *stage.Place) events.Event
		api, key  string
		meanwhile func(p *stage.Place) []events.Event
		want      contents
	}{
		{
			name:  "the PUT of a first upload",
			event: func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "old") },
			api:   put, key: "media/a.txt",
			meanwhile: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "new")} },
			want:      contents{"media/a.txt": "new"},
		},
		{
			name:   "the PUT of a re-upload",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "first")} },
			event:  func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "old") },
			api:    put, key: "media/a.txt",
			meanwhile: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "new")} },
			want:      contents{"media/a.txt": "new"},
		},
		{
			name:   "the PUT of a re-upload, of a media deleted meanwhile",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "first")} },
			event:  func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "old") },
			api:    put, key: "media/a.txt",
			meanwhile: func(p *stage.Place) []events.Event { return []events.Event{p.Delete("m1", "a.txt")} },
			want:      contents{},
		},
		{
			name:   "a DELETE",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			api:    deleted, key: "media/a.txt",
			meanwhile: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m2", "a.txt", "two")} },
			want:      contents{"media/a.txt": "two"},
		},
		{
			name:   "the COPY of a rename whose target has a new owner",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			api:    copied, key: "media/b.txt",
			meanwhile: func(p *stage.Place) []events.Event {
				return []events.Event{p.Rename("m1", "b.txt", "c.txt"), p.Upload("m2", "a.txt", "two"), p.Upload("m3", "b.txt", "three")}
			},
			want: contents{"media/a.txt": "two", "media/b.txt": "three", "media/c.txt": "one"},
		},
		{
			name:   "the COPY of a rename whose source has a new owner",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			api:    copied, key: "media/b.txt",
			meanwhile: func(p *stage.Place) []events.Event {
				return []events.Event{p.Rename("m1", "b.txt", "c.txt"), p.Upload("m2", "a.txt", "two")}
			},
			want: contents{"media/a.txt": "two", "media/c.txt": "one"},
		},
		{
			name:   "the DELETE of a rename",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			api:    deleted, key: "media/a.txt",
			meanwhile: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m2", "a.txt", "two")} },
			want:      contents{"media/b.txt": "one", "media/a.txt": "two"},
		},
	}
	url := dbtest.PostgreSQLURL(t)
	s := newStage(t, dbtest.Open(t, url))
	customers := places(s, cases)
	for i, tc := range cases {
		if tc.before != nil {
			publish(customers[i], tc.before(customers[i])...)
		}
	}
	finish(s)

	ids, letGo := make([][]string, len(cases)), make([]func(), len(cases))
	var reached []func()
	for i, tc := range cases {
		arrived, release := hold(customers[i], tc.api, tc.key)
		reached, letGo[i] = append(reached, arrived), release
		ids[i] = publish(customers[i], tc.event(customers[i]))
	}
	paused := startDoomed(s, url)
	for _, arrived := range reached {
		arrived()
	}
	paused.cutOff()
	for i, tc := range cases {
		ids[i] = append(ids[i], publish(customers[i], tc.meanwhile(customers[i])...)...)
	}
	finish(s) // once the leases have lapsed
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p := customers[i]
			for _, id := range ids[i] {
				wantStates(t, p, []string{id}, "completed done")
			}
			wantContents(t, p, tc.want)
			before := calls(p)
			letGo[i]()
			wantContents(t, p, tc.want)
			wantLedgerTrue(t, p, "m1", "m2", "m3")
			before[tc.api]++
			if diff := cmp.Diff(before, calls(p)); diff != "" {
				t.Errorf("the worker that lost its lease went on calling:\n%s", diff)
			}
		})
	}
	paused.end()
	if refused := s.AWS.Refused(); len(refused) > 0 {
		t.Errorf("asked for more than the manual's policy grants: %+v", refused)
	}
}

// A worker was shut down while its call was on the way. Nobody does what comes
// next before that call has arrived: it would leave an object that nobody knows
// of, or delete what was put since.
func TestACallThatWasCutOffHasTimeToArrive(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		before func(p *stage.Place) []events.Event
		event  func(p *stage.Place) events.Event
		after  func(p *stage.Place) events.Event
		api    string
		want   contents
	}{
		{
			name:  "the PUT of an upload",
			event: func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "one") },
			after: func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			api:   put, want: contents{"media/b.txt": "one"},
		},
		{
			name:   "the COPY of a rename",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			after:  func(p *stage.Place) events.Event { return p.Delete("m1", "b.txt") },
			api:    copied, want: contents{},
		},
		{
			name:   "a DELETE, of the bytes that come next",
			before: func(p *stage.Place) []events.Event { return []events.Event{p.Upload("m1", "a.txt", "one")} },
			event:  func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			after:  func(p *stage.Place) events.Event { return p.Upload("m2", "a.txt", "one") },
			api:    deleted, want: contents{"media/a.txt": "one"},
		},
	}
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := newStage(t, db)
		s.Config.Grace = time.Millisecond
		customers := places(s, cases)
		for i, tc := range cases {
			if tc.before != nil {
				publish(customers[i], tc.before(customers[i])...)
			}
		}
		finish(s)
		ids, letGo := make([]string, len(cases)), make([]func(), len(cases))
		var reached []func()
		for i, tc := range cases {
			arrived, release := hold(customers[i], tc.api, "*")
			reached, letGo[i] = append(reached, arrived), release
			ids[i] = publish(customers[i], tc.event(customers[i]))[0]
		}
		stop := s.Start()
		for _, arrived := range reached {
			arrived()
		}
		var stopping int64 // by the clock of the database, which is coarser than ours
		if err := db.GetContext(t.Context(), &stopping, db.SQL(`SELECT {now}`)); err != nil {
			t.Fatal(err)
		}
		stop()
		for i, tc := range cases {
			publish(customers[i], tc.after(customers[i]))
			var pause time.Duration
			if err := db.GetContext(t.Context(), &pause, db.SQL(`SELECT (next_attempt_at - CAST(? AS bigint)) * 1000
				FROM {outbox} WHERE CAST(event_id AS text) = ?`), stopping, ids[i]); err != nil {
				t.Fatalf("%s: %v\n%s", tc.name, err, s.Dump())
			}
			if pause < bucket.LateWrites {
				t.Errorf("%s may arrive for %s only before it is sent again", tc.name, pause)
			}
			letGo[i]()
		}
		finish(s)
		for i, tc := range cases {
			wantStates(t, customers[i], ids[i:i+1], "completed done")
			if n := customers[i].Event(ids[i]).AttemptCount; n != 1 {
				t.Errorf("%s cost an attempt: %d", tc.name, n)
			}
			wantContents(t, customers[i], tc.want)
		}
	})
}
