package handlers_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
)

const environmentServiceID = "SERVICE#dev-77"

// development is another environment of the place's service, with its settings.
func development(p *stage.Place) *stage.Place {
	p.T.Helper()
	settings := p.Integration()
	dev := p.In("dev")
	dev.Set(integration.Change{
		EnvironmentServiceID: ref(environmentServiceID), Bucket: &settings.Bucket, Region: &settings.Region,
		RoleARN: &settings.RoleARN, ExternalID: &settings.ExternalID, Prefix: &settings.Prefix,
	})
	return dev
}

func TestEveryObjectCarriesExactlyTheManualsMetadata(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		dev := development(p)
		at := func(e events.MediaUploaded, contentType string, second int) events.MediaUploaded {
			e.ContentType = contentType
			e.Version = events.NewVersion(time.Date(2026, 8, 12, 15, 49, second, 999_999_000, time.FixedZone("JST", 9*3600)))
			return e
		}
		publish(p, at(p.Upload("m1", "a.png", "one"), "image/png", 1))
		publish(p, at(p.Upload("m2", "b.pdf", big), "application/pdf; charset=binary", 2))
		publish(p, at(p.Upload("m3", "c", ""), "text/plain", 3))
		publish(dev, at(p.Upload("m1", "a.png", "dev"), "image/png", 4))
		finish(p.Stage)
		rename := p.Rename("m1", "a.png", "d.png")
		rename.Version = events.NewVersion(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		reupload := at(p.Upload("m3", "c", "more"), "text/markdown", 5)
		publish(p, rename, reupload)
		finish(p.Stage)

		type object struct {
			ContentType string
			Metadata    map[string]string
			Tags        int
		}
		mark := func(service, version string) map[string]string {
			return map[string]string{"upload-source": "microcms", "microcms-service": service,
				"microcms-version": version, "microcms-status": "public"}
		}
		want := map[string]object{
			"media/d.png":             {"image/png", mark(service, "20270101000000"), 0},
			"media/b.pdf":             {"application/pdf; charset=binary", mark(service, "20260812064902"), 0},
			"media/c":                 {"text/markdown", mark(service, "20260812064905"), 0},
			dev.KeyPrefix() + "a.png": {"image/png", mark(environmentServiceID, "20260812064904"), 0},
		}
		got := map[string]object{}
		for _, o := range p.AWS.Objects(p.Bucket) {
			got[o.Key] = object{o.ContentType, o.Metadata, len(o.Tags)}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		for _, entry := range p.AWS.Log() {
			wantNothingElse(t, entry)
		}
	})
}

// wantNothingElse: no ACL, tag, cache or storage header is ever sent, and
// nothing is written or deleted but under a condition.
func wantNothingElse(t *testing.T, entry awslocal.Entry) {
	t.Helper()
	for _, name := range []string{"Cache-Control", "Expires", "Content-Disposition", "Content-Language", "X-Amz-Acl",
		"X-Amz-Tagging", "X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location", "X-Amz-Server-Side-Encryption"} {
		if entry.Header.Get(name) != "" {
			t.Errorf("%s of %s sent %s: %s", entry.API, entry.Key, name, entry.Header.Get(name))
		}
	}
	for name := range entry.Header {
		if strings.HasPrefix(name, "X-Amz-Grant-") {
			t.Errorf("%s of %s sent %s", entry.API, entry.Key, name)
		}
	}
	conditions := [...]string{entry.Header.Get("If-None-Match"), entry.Header.Get("If-Match")}
	switch entry.API {
	case put, copied:
		if (conditions[0] == "*") == (conditions[1] != "") {
			t.Errorf("%s of %s: conditions %q", entry.API, entry.Key, conditions)
		}
	case deleted:
		if conditions[1] == "" {
			t.Errorf("%s of %s is unconditional", entry.API, entry.Key)
		}
	}
	if entry.API == copied && (entry.Header.Get("X-Amz-Metadata-Directive") != "REPLACE" ||
		entry.Header.Get("X-Amz-Copy-Source-If-Match") == "" || entry.Header.Get("X-Amz-Tagging-Directive") != "REPLACE") {
		t.Errorf("a COPY with %v", entry.Header)
	}
}

func TestTagsThatTheCustomerAddedDontStopARename(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		o, content, err := p.AWS.GetDirect(p.Bucket, "media/a.txt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.AWS.PutDirect(p.Bucket, "media/a.txt", content, awslocal.Stranger{
			ContentType: o.ContentType, Metadata: o.Metadata, Tags: map[string]string{"cost": "marketing"},
		}); err != nil {
			t.Fatal(err)
		}
		ids := run(p, p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "completed done")
		wantContents(t, p, contents{"media/b.txt": "one"})
	})
}

// The minimum of calls. A HEAD before a COPY is for stand-ins, which ignore
// COPY's condition.
func TestAFirstAttemptMakesTheFewestCalls(t *testing.T) {
	cases := []struct {
		name   string
		before bool
		event  func(p *stage.Place) events.Event
		want   map[string]int
	}{
		{"upload", false, func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "one") }, map[string]int{put: 1}},
		{"upload of a stream", false, func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", big) }, map[string]int{put: 1}},
		{"re-upload", true, func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "two") }, map[string]int{put: 1}},
		{"re-upload under another name", true, func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") },
			map[string]int{put: 1, deleted: 1}},
		{"rename", true, func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			map[string]int{copied: 1, deleted: 1}},
		{"rename to the same name", true, func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "a.txt") },
			map[string]int{copied: 1}},
		{"rename of nothing", false, func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") }, map[string]int{}},
		{"delete", true, func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") }, map[string]int{deleted: 1}},
		{"delete of nothing", false, func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") }, map[string]int{head: 1}},
	}
	for _, at := range []string{"AWS", "a stand-in"} {
		t.Run("at "+at, func(t *testing.T) {
			eachStage(t, func(t *testing.T, s *stage.Stage) {
				if at != "AWS" {
					s.AtStandIn()
				}
				customers := places(s, cases)
				for i, p := range customers {
					if cases[i].before {
						p.Publish(p.Upload("m1", "a.txt", "one"))
					}
				}
				finish(s)
				s.AWS.ResetCounts()
				for i, p := range customers {
					p.Publish(cases[i].event(p))
				}
				finish(s)
				for i, tc := range cases {
					want := tc.want
					if at != "AWS" && tc.name == "rename" {
						want = map[string]int{copied: 1, deleted: 1, head: 1}
					}
					if diff := cmp.Diff(want, calls(customers[i])); diff != "" {
						t.Errorf("%s:\n%s", tc.name, diff)
					}
				}
			})
		})
	}
}

func TestARoleIsAssumedOncePerIntegration(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		var list []events.Event
		for _, m := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			list = append(list, p.Upload(m, m+".txt", m), p.Rename(m, m+".txt", m+m+".txt"))
		}
		for _, e := range list {
			p.Publish(e)
		}
		p.Work()
		if got := p.AWS.RoleCounts(p.Role)["sts:AssumeRole"]; got != 1 {
			t.Errorf("the role was assumed %d times", got)
		}
	})
}

func TestKeysStayBelowThePrefix(t *testing.T) {
	prefixes := []string{"", "folder", "folderfoo", "folder/sub", "日本語/メディア"}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		for i, prefix := range prefixes {
			name := fmt.Sprintf("customer-%d", i)
			p := s.Customer(fmt.Sprintf("SERVICE#%d", i), name, prefix)
			ids := run(p, p.Upload("m1", "a.txt", "one"), p.Rename("m1", "a.txt", "b.txt"), p.Upload("m2", "c.txt", "two"), p.Delete("m2", "c.txt"))
			wantStates(t, p, ids, "completed done", "completed done", "completed done", "completed done")
			below := bucket.KeyPrefix(prefix, "")
			wantContents(t, p, contents{below + "b.txt": "one"})
			for _, entry := range s.AWS.Log() {
				if entry.Bucket == name && !strings.HasPrefix(entry.Key, below) {
					t.Errorf("%s of %q, which isn't below %q", entry.API, entry.Key, below)
				}
			}
		}
	})
}

// Two services share a bucket, the prefix of one beginning like the other's.
func TestAPrefixIsNotTheBeginningOfAnother(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		settings := p.Integration()
		stranger(p, "mediafoo/a.txt", "theirs")
		stranger(p, "media", "theirs")
		other := *p
		other.Service = "SERVICE#other"
		role, err := p.AWS.AddCustomer(awslocal.Customer{Bucket: "elsewhere", Region: stage.Region,
			Policy: awslocal.CustomerPolicy(customer, "mediabar")})
		if err != nil {
			t.Fatal(err)
		}
		other.Set(integration.Change{Bucket: &settings.Bucket, Region: &settings.Region, RoleARN: &role.RoleARN,
			ExternalID: &role.ExternalID, Prefix: ref("mediabar")})
		ids := run(p, p.Upload("m1", "a.txt", "one"))
		ids = append(ids, run(&other, p.Upload("m1", "a.txt", "two"))...)
		ids = append(ids, run(p, p.Delete("m1", "a.txt"))...)
		wantStates(t, p, ids, "completed done", "completed done", "completed done")
		wantContents(t, p, contents{"mediafoo/a.txt": "theirs", "media": "theirs", "mediabar/a.txt": "two"})
	})
}

func TestTheOldObjectGoesOnlyWhenTheNewOneIsThere(t *testing.T) {
	moves := []struct {
		name  string
		event func(p *stage.Place) events.Event
		write string
		moved contents
	}{
		{"re-upload", func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "new") }, put,
			contents{"media/b.txt": "new"}},
		{"rename", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") }, copied,
			contents{"media/b.txt": "old"}},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		s.Config.RetryAttempts = 2
		customers := places(s, moves)
		for _, p := range customers {
			p.Publish(p.Upload("m1", "a.txt", "old"))
		}
		finish(s)
		for i, tc := range moves {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				broken := s.AWS.Inject(awslocal.Rule{API: tc.write, Bucket: p.Bucket, Status: 500, Code: "InternalError"})
				ids := run(p, tc.event(p))
				wantStates(t, p, ids, "dead server_error")
				wantContents(t, p, contents{"media/a.txt": "old"})
				broken.Remove()

				broken = s.AWS.Inject(awslocal.Rule{API: deleted, Bucket: p.Bucket, Status: 500, Code: "InternalError"})
				retry(p, ids...)
				finish(s)
				wantStates(t, p, ids, "dead server_error")
				both := contents{"media/a.txt": "old"}
				maps.Copy(both, tc.moved)
				wantContents(t, p, both)
				broken.Remove()

				retry(p, ids...)
				finish(s)
				wantStates(t, p, ids, "completed done")
				wantContents(t, p, tc.moved)
				wantLedgerTrue(t, p, "m1")
			})
		}
	})
}

// Under KMS an ETag is no digest, and changes with every write of equal bytes.
func TestUnderKMSNothingIsConcludedFromETags(t *testing.T) {
	const key = "arn:aws:kms:ap-northeast-1:123456789012:key/k"
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		p := s.Customer(service, "elsewhere", "media")
		made, err := s.AWS.AddCustomer(awslocal.Customer{
			Bucket: customer, Region: stage.Region, Prefix: "media", Options: awslocal.BucketOptions{KMSKey: key},
			Policy: strings.Replace(awslocal.CustomerPolicy(customer, "media"), `"Statement": [`, `"Statement": [
				{"Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": "`+key+`"},`, 1),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Set(integration.Change{Bucket: ref(customer), RoleARN: &made.RoleARN, ExternalID: &made.ExternalID})
		p.Bucket = customer
		for _, api := range []string{put, copied, deleted} {
			s.AWS.Inject(awslocal.Rule{API: api, Bucket: customer, Times: 6, AfterEffect: true, Reset: true})
		}
		s.Config.RetryAttempts = 20
		ids := run(p,
			p.Upload("m1", "a.txt", "one"), p.Upload("m1", "a.txt", "one"), p.Upload("m1", "a.txt", big),
			p.Rename("m1", "a.txt", "a.txt"), p.Rename("m1", "a.txt", "b.txt"), p.Upload("m1", "c.txt", "two"),
			p.Upload("m2", "d.txt", "three"), p.Delete("m2", "d.txt"))
		for _, id := range ids {
			wantStates(t, p, []string{id}, "completed done")
		}
		wantContents(t, p, contents{"media/c.txt": "two"})
		wantLedgerTrue(t, p, "m1", "m2")
	})
}

func TestTheBrandIsASetting(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		p.Config.Brand = "Acme"
		upload := p.Upload("m1", "a.txt", "one")
		run(p, upload)
		want := map[string]string{"upload-source": "Acme", "acme-service": service,
			"acme-version": bucket.FormatVersion(upload.Version.Micros()), "acme-status": "public"}
		if diff := cmp.Diff(want, p.AWS.Objects(p.Bucket)[0].Metadata); diff != "" {
			t.Error(diff)
		}
	})
}
