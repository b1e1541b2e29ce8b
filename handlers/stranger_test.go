package handlers_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestAStrangersObjectIsNeverOverwritten(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		stranger(p, "media/taken.txt", "somebody else's")
		ids := run(p, p.Upload("m2", "taken.txt", "two"), p.Upload("m1", "taken.txt", "two"), p.Rename("m1", "a.txt", "taken.txt"))
		wantStates(t, p, ids, "dead key_taken", "dead key_taken", "dead key_taken")
		wantContents(t, p, contents{"media/a.txt": "one", "media/taken.txt": "somebody else's"})
		wantLedgerTrue(t, p, "m1", "m2")
		wantPossibleWrites(t, p)

		// Nothing of ours is at the key: what follows leaves it alone.
		more := run(p, p.Delete("m2", "taken.txt"), p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, more, "completed skipped", "completed done")
		wantContents(t, p, contents{"media/b.txt": "one", "media/taken.txt": "somebody else's"})

		p.AWS.DeleteDirect(p.Bucket, "media/taken.txt")
		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids[:1], "completed superseded") // m2 was deleted meanwhile
	})
}

// The object carries our mark, but another service's, or another version.
func TestWhatLooksLikeOursIsNotOurs(t *testing.T) {
	marks := func(p *stage.Place, upload events.MediaUploaded) map[string]map[string]string {
		version := upload.Version.Time().Format("20060102150405")
		return map[string]map[string]string{
			"another service":     {"upload-source": "microcms", "microcms-service": "SERVICE#other", "microcms-version": version},
			"another version":     {"upload-source": "microcms", "microcms-service": service, "microcms-version": "20200101000000"},
			"another source":      {"upload-source": "other", "microcms-service": service, "microcms-version": version},
			"no source":           {"microcms-service": service, "microcms-version": version},
			"a prefix of service": {"upload-source": "microcms", "microcms-service": service[:3], "microcms-version": version},
		}
	}
	each(t, func(t *testing.T, p *stage.Place) {
		for name := range marks(p, p.Upload("x", "x", "")) {
			upload := p.Upload("media "+name, name+".txt", "new")
			if _, err := p.AWS.PutDirect(p.Bucket, "media/"+name+".txt", []byte("theirs"), awslocal.Stranger{
				Metadata: marks(p, upload)[name],
			}); err != nil {
				t.Fatal(err)
			}
			ids := run(p, upload, p.Delete("media "+name, name+".txt"))
			wantStates(t, p, ids, "dead key_taken", "completed skipped")
		}
		for key, content := range p.Contents() {
			if content != "theirs" {
				t.Errorf("%s: %q", key, content)
			}
		}
		if got := len(p.Contents()); got != 5 {
			t.Errorf("%d objects of strangers are left, want 5", got)
		}
	})
}

func TestAnObjectThatTheCustomerReplacedIsNotOursAnyMore(t *testing.T) {
	cases := []struct {
		name  string
		event func(p *stage.Place) events.Event
		state string
		want  contents
		key   string // the ledger's, afterwards
	}{
		{"re-upload", func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "two") },
			"dead key_taken", contents{"media/a.txt": "theirs"}, "media/a.txt"},
		{"re-upload under another name", func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") },
			"completed done", contents{"media/a.txt": "theirs", "media/b.txt": "two"}, "media/b.txt"},
		{"rename", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			"dead object_missing", contents{"media/a.txt": "theirs"}, "media/a.txt"},
		{"rename to the same name", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "a.txt") },
			"dead object_missing", contents{"media/a.txt": "theirs"}, "media/a.txt"},
		{"delete", func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			"completed done", contents{"media/a.txt": "theirs"}, ""},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for _, p := range customers {
			publish(p, p.Upload("m1", "a.txt", "one"))
		}
		finish(s)
		ids := make([][]string, len(cases))
		for i, tc := range cases {
			stranger(customers[i], "media/a.txt", "theirs")
			ids[i] = publish(customers[i], tc.event(customers[i]))
		}
		finish(s)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				wantStates(t, customers[i], ids[i], tc.state)
				wantContents(t, customers[i], tc.want)
				wantKeys(t, customers[i], map[string]string{"m1": tc.key})
			})
		}
	})
}

func TestAnObjectThatTheCustomerRemovedIsMadeAnewOrReportedMissing(t *testing.T) {
	cases := []struct {
		name  string
		event func(p *stage.Place) events.Event
		state string
		want  contents
	}{
		{"re-upload", func(p *stage.Place) events.Event { return p.Upload("m1", "a.txt", "two") },
			"completed done", contents{"media/a.txt": "two"}},
		{"re-upload under another name", func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") },
			"completed done", contents{"media/b.txt": "two"}},
		{"rename", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			"dead object_missing", contents{}},
		{"rename to the same name", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "a.txt") },
			"dead object_missing", contents{}},
		{"delete", func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") },
			"completed done", contents{}},
	}
	for _, at := range []string{"AWS", "a stand-in"} {
		t.Run("at "+at, func(t *testing.T) {
			eachStage(t, func(t *testing.T, s *stage.Stage) {
				if at != "AWS" {
					s.AtStandIn()
				}
				customers := places(s, cases)
				for _, p := range customers {
					publish(p, p.Upload("m1", "a.txt", "one"))
				}
				finish(s)
				ids := make([][]string, len(cases))
				for i, tc := range cases {
					s.AWS.DeleteDirect(customers[i].Bucket, "media/a.txt")
					ids[i] = publish(customers[i], tc.event(customers[i]))
				}
				finish(s)
				for i, tc := range cases {
					t.Run(tc.name, func(t *testing.T) {
						wantStates(t, customers[i], ids[i], tc.state)
						wantContents(t, customers[i], tc.want)
						wantLedgerTrue(t, customers[i])
					})
				}
			})
		})
	}
}

// The customer's tools may copy objects with all their metadata.
func TestACopyMadeByTheCustomerIsTheirs(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		ours, content, err := p.AWS.GetDirect(p.Bucket, "media/a.txt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.AWS.PutDirect(p.Bucket, "media/b.txt", content, awslocal.Stranger{Metadata: ours.Metadata}); err != nil {
			t.Fatal(err)
		}
		ids := run(p, p.Upload("m2", "b.txt", "two"), p.Rename("m1", "a.txt", "b.txt"))
		wantStates(t, p, ids, "dead key_taken", "dead key_taken")
		wantContents(t, p, contents{"media/a.txt": "one", "media/b.txt": "one"})
	})
}
