package handlers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// model is what the events mean, done one after the other without any failure.
type model struct {
	rows map[string]*modelRow
	dead map[string]bool // media with a dead event
}

type modelRow struct {
	version int64
	name    string // empty: deleted
	content string
}

func (m *model) live(media string) *modelRow {
	if row := m.rows[media]; row != nil && row.name != "" {
		return row
	}
	return nil
}

func (m *model) taken(media, name string) bool {
	for other, row := range m.rows {
		if other != media && row.name == name {
			return true
		}
	}
	return false
}

// apply returns how the event ends.
func (m *model) apply(e events.Event, content string) string {
	media := e.Media()
	die := func(code string) string {
		m.dead[media] = true
		return "dead " + code
	}
	switch e := e.(type) {
	case events.MediaUploaded:
		if m.taken(media, e.FileName) {
			return die("key_taken")
		}
		m.rows[media] = &modelRow{e.Version.Micros(), e.FileName, content}
	case events.MediaRenamed:
		switch {
		case m.live(media) == nil && m.dead[media]:
			return die("predecessor_dead")
		case m.live(media) == nil:
			return "completed skipped"
		case m.taken(media, e.To):
			return die("key_taken")
		}
		m.rows[media] = &modelRow{e.Version.Micros(), e.To, m.rows[media].content}
	case events.MediaDeleted:
		was := m.live(media)
		m.rows[media] = &modelRow{version: e.Version.Micros()}
		if was == nil {
			return "completed skipped"
		}
	}
	return "completed done"
}

// draw makes up an event that a CMS could publish: its names are those that
// the media has, its version mostly the newest: the clocks of its nodes may differ.
func (m *model) draw(t *rapid.T, s *stage.Stage, i int) (events.Event, string) {
	media := rapid.SampledFrom([]string{"m1", "m2", "m3"}).Draw(t, "media")
	name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")
	age := rapid.SampledFrom([]int{0, 0, 0, 0, 1, 3}).Draw(t, "age") // in events
	version := events.NewVersion(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i-age) * 400 * time.Millisecond))
	now := name
	if row := m.live(media); row != nil {
		now = row.name
	}
	switch rapid.SampledFrom([]string{"upload", "upload", "rename", "rename", "delete"}).Draw(t, "event") {
	case "upload":
		content := fmt.Sprintf("content %d", i)
		e := s.Upload(media, name, content)
		e.Version = version
		if now != name {
			e.PreviousFileName = now
		}
		return e, content
	case "rename":
		return events.MediaRenamed{MediaID: media, From: now, To: name, Version: version}, ""
	default:
		return events.MediaDeleted{MediaID: media, FileName: now, Version: version}, ""
	}
}

// disturb makes some calls fail for a while, with or without their effect.
func disturb(t *rapid.T, p *stage.Place) {
	for range rapid.IntRange(0, 3).Draw(t, "faults") {
		rule := awslocal.Rule{
			Bucket:      p.Bucket,
			API:         rapid.SampledFrom([]string{put, copied, deleted, head}).Draw(t, "API"),
			AfterEffect: rapid.Bool().Draw(t, "after the effect"),
			Skip:        rapid.IntRange(0, 3).Draw(t, "skip"),
			Times:       rapid.IntRange(1, 4).Draw(t, "times"),
		}
		if rapid.Bool().Draw(t, "reset") {
			rule.Reset = true
		} else {
			rule.Status, rule.Code = 500, "InternalError"
		}
		p.AWS.Inject(rule)
	}
}

// Whatever is published, in whatever order calls run and however they fail for
// a while: bucket and ledger end as if the events had run one after the other.
func TestAnyHistoryEndsAsIfItsEventsHadRunOneByOne(t *testing.T) {
	t.Parallel()
	s := newStage(t, dbtest.SQLite(t))
	s.Config.RetryAttempts = 20
	services := 0
	rapid.Check(t, func(rt *rapid.T) {
		services++
		p := s.Customer(fmt.Sprintf("SERVICE#%d", services), fmt.Sprintf("customer-%d", services), "media")
		m := &model{rows: map[string]*modelRow{}, dead: map[string]bool{}}
		disturb(rt, p)
		var ids, want []string
		for i := range rapid.IntRange(1, 15).Draw(rt, "events") {
			e, content := m.draw(rt, s, i)
			want = append(want, m.apply(e, content))
			ids = append(ids, p.Publish(e))
		}
		finish(s)
		s.AWS.ClearFaults()
		got := make([]string, len(ids))
		for i, id := range ids {
			got[i] = s.Event(id).String()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Errorf("states (-want +got):\n%s", diff)
		}
		m.compare(rt, p)
	})
	if refused := s.AWS.Refused(); len(refused) > 0 {
		t.Errorf("asked for more than the manual's policy grants: %+v", refused)
	}
}

// compare holds bucket and ledger against the model.
func (m *model) compare(t *rapid.T, p *stage.Place) {
	type object struct{ Content, Version string }
	want, got := map[string]object{}, map[string]object{}
	wantRows, gotRows := map[string]string{}, map[string]string{}
	for media, row := range m.rows {
		wantRows[media] = fmt.Sprintf("%s at %d", row.name, row.version)
		if held := p.Ledger(media); held.Live() {
			gotRows[media] = fmt.Sprintf("%s at %d", bucket.FileName(*held.Key), held.Version)
		} else if held != nil {
			gotRows[media] = fmt.Sprintf(" at %d", held.Version)
		}
		if row.name != "" {
			want["media/"+row.name] = object{row.content, bucket.FormatVersion(row.version)}
		}
	}
	contents := p.Contents()
	for _, o := range p.AWS.Objects(p.Bucket) {
		got[o.Key] = object{contents[o.Key], o.Metadata["microcms-version"]}
		for media := range m.rows {
			if held := p.Ledger(media); held.HoldsKey(o.Key) && (held.ETag != o.ETag || held.Size != o.Size) {
				t.Errorf("the ledger says %+v, the bucket has %+v", held, o)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bucket (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantRows, gotRows); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
}
