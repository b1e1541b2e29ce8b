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

// A possible write's version makes an object ours at its own key only, and
// another media's only where this one writes.
func TestACopyOfALeftoverMadeByTheCustomerIsTheirs(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		leave(p, put, p.Upload("m1", "b.txt", "lost"))
		leave(p, put, p.Upload("m2", "c.txt", "lost too"))
		for from, to := range map[string]string{"b.txt": "d.txt", "c.txt": "a.txt"} {
			ours, content, err := p.AWS.GetDirect(p.Bucket, "media/"+from)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.AWS.PutDirect(p.Bucket, "media/"+to, content, awslocal.Stranger{Metadata: ours.Metadata}); err != nil {
				t.Fatal(err)
			}
		}
		ids := run(p, p.Upload("m1", "d.txt", "two"), p.Upload("m1", "c.txt", "three"))
		wantStates(t, p, ids, "dead key_taken", "completed done")
		wantContents(t, p, contents{"media/a.txt": "lost too", "media/c.txt": "three", "media/d.txt": "lost"})
		wantLedgerTrue(t, p, "m1")
	})
}

// A delete knows an object by its name alone where the ledger has no row: what
// another media's dead upload has left is that one's to take up.
func TestADeleteWithoutARowLeavesAnotherMediasLeftover(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		upload := p.Upload("m2", "b.txt", "two")
		ids := leave(p, put, upload)
		p.RemoveFile(upload.Source)
		ids = append(ids, run(p, p.Delete("m1", "b.txt"))...)
		retry(p, ids[0])
		finish(p.Stage)
		wantStates(t, p, ids, "completed done", "completed skipped")
		wantContents(t, p, contents{"media/b.txt": "two"})
		wantLedgerTrue(t, p, "m2")
	})
}

// The ledger's version, but another ETag: as a late call of equal bytes leaves it
// under KMS.
func TestAnObjectOfOursThatWasWrittenAgainGoesWithItsMedia(t *testing.T) {
	cases := []struct {
		name  string
		event func(p *stage.Place) events.Event
		want  contents
	}{
		{"delete", func(p *stage.Place) events.Event { return p.Delete("m1", "a.txt") }, contents{}},
		{"re-upload under another name", func(p *stage.Place) events.Event { return p.Upload("m1", "b.txt", "two") },
			contents{"media/b.txt": "two"}},
		{"rename", func(p *stage.Place) events.Event { return p.Rename("m1", "a.txt", "b.txt") },
			contents{"media/b.txt": "again"}},
	}
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, cases)
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				p := customers[i]
				run(p, p.Upload("m1", "a.txt", "one"))
				ours, _, err := p.AWS.GetDirect(p.Bucket, "media/a.txt")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.AWS.PutDirect(p.Bucket, "media/a.txt", []byte("again"), awslocal.Stranger{
					ContentType: ours.ContentType, Metadata: ours.Metadata,
				}); err != nil {
					t.Fatal(err)
				}
				ids := run(p, tc.event(p))
				wantStates(t, p, ids, "completed done")
				wantContents(t, p, tc.want)
				wantLedgerTrue(t, p, "m1")
			})
		}
	})
}
