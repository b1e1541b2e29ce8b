package history_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
)

func versionOf(micros int64) events.Version { return events.NewVersion(time.UnixMicro(micros)) }

// key is where a name of the place stands in its bucket.
func (p *performance) key(at place, name string) string {
	directory := ""
	if at.environment != "" {
		directory = bucket.Directory(at.serviceID())
	}
	return bucket.KeyPrefix(p.services[at.service].Prefix, directory) + name
}

const strangers = "a stranger's"

// compare holds buckets and ledger against the model.
func (p *performance) compare(want model) {
	p.T.Helper()
	objects, rows := map[string]string{}, map[string]string{}
	for at, s := range want {
		where := p.services[at.service].Bucket + "/"
		for name := range s.strangers {
			objects[where+p.key(at, name)] = strangers
		}
		for media, r := range s.rows {
			of := fmt.Sprint(at.service, "/", at.environment, " ", media)
			if !r.live() {
				rows[of] = fmt.Sprintf("deleted by #%d, version %d", r.n, r.version)
				continue
			}
			key := p.key(at, r.name)
			rows[of] = fmt.Sprintf("%s by #%d, version %d, %s, %d bytes", key, r.n, r.version, r.contentType, len(r.content))
			objects[where+key] = fmt.Sprintf("%s, %s, %v", r.content, r.contentType, map[string]string{
				"upload-source": "microcms", "microcms-service": at.serviceID(),
				"microcms-version": bucket.FormatVersion(r.version), "microcms-status": "public"})
		}
	}
	for what, diff := range map[string]string{
		"buckets": cmp.Diff(objects, p.objects()),
		"ledger":  cmp.Diff(rows, p.rows()),
		"workers": strings.Join(p.crew.faulty(), "\n"),
	} {
		if diff != "" {
			p.T.Fatalf("%s (-want +got):\n%s\n%s", what, diff, p.told())
		}
	}
}

func (p *performance) objects() map[string]string {
	found := map[string]string{}
	for _, s := range p.services {
		for _, o := range p.AWS.Objects(s.Bucket) {
			body, err := o.Open()
			if err != nil {
				p.T.Fatal(err)
			}
			content, err := io.ReadAll(body)
			_ = body.Close()
			if err != nil {
				p.T.Fatal(err)
			}
			text := string(content)
			if text != strangers {
				text += fmt.Sprintf(", %s, %v", o.ContentType, o.Metadata)
			}
			found[s.Bucket+"/"+o.Key] = text
		}
	}
	return found
}

// rows reads the ledger, and holds its ETags against the buckets'.
func (p *performance) rows() map[string]string {
	var list []struct {
		Media                   string `db:"media"`
		Version, N, Size        int64
		Bucket, Key, Type, ETag *string
	}
	if err := p.DB.Select(&list, p.DB.SQL(`
		SELECT l.service_id || '/' || l.environment_id || ' ' || m.media_id AS media, m.version,
			CAST(substr(CAST(e.event_id AS text), 25) AS bigint) AS n, m.size,
			m.bucket, m.object_key AS key, m.content_type AS type, m.etag
		FROM {media_objects} m JOIN {lanes} l ON l.lane_id = m.lane_id
		JOIN {outbox} e ON e.sequence = m.sequence`)); err != nil {
		p.T.Fatal(err)
	}
	found := map[string]string{}
	for _, r := range list {
		if r.Key == nil {
			found[r.Media] = fmt.Sprintf("deleted by #%d, version %d", r.N, r.Version)
			continue
		}
		found[r.Media] = fmt.Sprintf("%s by #%d, version %d, %s, %d bytes", *r.Key, r.N, r.Version, *r.Type, r.Size)
		if o, _, err := p.AWS.GetDirect(*r.Bucket, *r.Key); err == nil && o.ETag != *r.ETag {
			found[r.Media] += fmt.Sprintf(", ETag %s, where the bucket has %s", *r.ETag, o.ETag)
		}
	}
	return found
}

// verify holds what the events came to against what the order allows: each
// committed event ended once, as it may, and none else is there.
func (p *performance) verify() {
	p.T.Helper()
	p.compare(p.cms.model)
	var list []struct {
		ID       string `db:"id"`
		Sequence int64  `db:"sequence"`
		State    string `db:"state"`
		Ends     int    `db:"ends"`
	}
	if err := p.DB.Select(&list, p.DB.SQL(`
		SELECT CAST(event_id AS text) AS id, sequence, state || ' ' || coalesce(outcome, error_code) AS state,
			(SELECT count(*) FROM {attempts} a WHERE a.sequence = e.sequence AND a.error_class IS NULL) AS ends
		FROM {outbox} e ORDER BY sequence`)); err != nil {
		p.T.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	for _, a := range p.cms.all {
		want[a.id] = p.cms.ends[a][0]
	}
	sequences := map[*act]int64{}
	for _, e := range list {
		at := slices.IndexFunc(p.cms.all, func(a *act) bool { return a.id == e.ID })
		if _, twice := got[e.ID]; twice || at < 0 {
			got[e.ID] += " and another: "
		}
		got[e.ID] += e.State
		if at < 0 {
			continue
		}
		a := p.cms.all[at]
		sequences[a] = e.Sequence
		if slices.Contains(p.cms.ends[a], e.State) && got[e.ID] == e.State {
			want[e.ID] = e.State
		}
		if e.Ends > 1 {
			got[e.ID] += fmt.Sprintf(", %d times", e.Ends)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		p.T.Fatalf("events (-want +got):\n%s\n%s", diff, p.told())
	}
	p.verifyOrder(sequences)
	p.verifyNothingIsLeft()
}

// verifyOrder: what shares a media or a name took effect in order.
func (p *performance) verifyOrder(sequences map[*act]int64) {
	p.T.Helper()
	for i, later := range p.cms.all {
		for _, earlier := range p.cms.all[:i] {
			if !later.ordered(earlier) || later.place != earlier.place {
				continue
			}
			before, after := p.crew.effects[sequences[earlier]], p.crew.effects[sequences[later]]
			if len(before) > 0 && len(after) > 0 && slices.Max(before) > slices.Min(after) {
				p.T.Fatalf("%s\ntook effect before\n%s\nhad finished\n%s", later, earlier, p.told())
			}
		}
	}
}

func (p *performance) verifyNothingIsLeft() {
	p.T.Helper()
	for what, query := range map[string]string{
		"events that hold back others": `SELECT count(*) FROM {holds}`,
		"leases":                       `SELECT count(*) FROM {lanes} WHERE leased_by IS NOT NULL OR leased_until IS NOT NULL`,
		"leases of items":              `SELECT count(*) FROM {copy_items} WHERE leased_until IS NOT NULL`,
		"closed gates":                 `SELECT count(*) FROM {lanes} WHERE gate_sequence IS NOT NULL`,
	} {
		var n int
		if err := p.DB.GetContext(context.Background(), &n, p.DB.SQL(query)); err != nil || n > 0 {
			p.T.Fatalf("%d %s are left, %v\n%s", n, what, err, p.told())
		}
	}
	if refused := p.AWS.Refused(); len(refused) > 0 {
		p.T.Fatalf("asked for more than the manual's policy grants: %+v\n%s", refused, p.told())
	}
}
