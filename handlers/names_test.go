package handlers_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

var oddNames = []string{
	"plain.txt",
	"two  spaces.txt", " leading", "trailing ", "a+b.txt", "a%2Fb.txt", "100%.txt", "%", "%%", "%zz",
	`"quoted".txt`, "it's.txt", "a&b=c.txt", "a;b.txt", "a:b.txt", "a@b.txt", "a,b.txt", "a$b.txt", "a!b.txt",
	"#anchor.txt", "why?.txt", "home~.txt", "~", "*", "a*b.txt", "(1).txt", "[1].txt", "{1}.txt", "<1>.txt", "a|b^c`d.txt",
	"...", ".hidden", "a..b", "-", "=", "?versionId=1", "?uploads", "?delete",
	"日本語 ファイル名.png", "\u304c.txt", "\u304b\u3099.txt", // が, composed and decomposed
	"é.txt", "e\u0301.txt", "👩‍👩‍👧‍👦 family.png", "🇯🇵", "\u200b", "\u00a0", "a\u2028b", "\ufeffbom", "\ufffd", "\U0010ffff",
	"مرحبا.txt", "ﬁ.txt", "İstanbul.txt",
	strings.Repeat("n", bucketRoom-1), strings.Repeat("é", (bucketRoom-1)/2), strings.Repeat("漢", (bucketRoom-1)/3),
}

// bucketRoom is what a key's 1,024 bytes leave for a file name below media/.
const bucketRoom = 1024 - len("media/")

func TestFileNamesSurviveByteForByte(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		want := contents{}
		var ids []string
		for i, name := range oddNames {
			ids = append(ids, p.Publish(p.Upload(fmt.Sprintf("m%d", i), name, name)))
			want["media/"+name] = name
		}
		finish(p.Stage)
		wantContents(t, p, want)

		want = contents{}
		for i, name := range oddNames {
			ids = append(ids, p.Publish(p.Rename(fmt.Sprintf("m%d", i), name, "x"+name)))
			want["media/x"+name] = name
		}
		finish(p.Stage)
		wantContents(t, p, want)

		for i, name := range oddNames {
			ids = append(ids, p.Publish(p.Rename(fmt.Sprintf("m%d", i), "x"+name, name)),
				p.Publish(p.Delete(fmt.Sprintf("m%d", i), name)))
		}
		finish(p.Stage)
		wantContents(t, p, contents{})
		for _, id := range ids {
			wantStates(t, p, []string{id}, "completed done")
		}
	})
}

func TestAnyValidFileNameSurvives(t *testing.T) {
	t.Parallel()
	p := newStage(t, dbtest.SQLite(t)).Customer(service, customer, "media")
	p.Start()
	media := 0
	rapid.Check(t, func(rt *rapid.T) {
		valid := rapid.StringN(1, 40, bucketRoom).Filter(func(name string) bool { return events.ValidateFileName(name) == nil })
		names := rapid.SliceOfNDistinct(valid, 2, 6, rapid.ID[string]).Draw(rt, "names")
		media++
		m := fmt.Sprintf("m%d", media)
		last := p.Publish(p.Upload(m, names[0], names[0]))
		for i := 1; i < len(names); i++ {
			last = p.Publish(p.Rename(m, names[i-1], names[i]))
		}
		p.Await("the last rename", func() bool { return p.Event(last).State == "completed" })
		key := "media/" + names[len(names)-1]
		if got := p.Contents(); len(got) != 1 || got[key] != names[0] {
			rt.Fatalf("bucket %q, want %q at %q", got, names[0], key)
		}
		last = p.Publish(p.Delete(m, names[0]))
		p.Await("the delete", func() bool { return p.Event(last).State == "completed" })
		if got := p.Contents(); len(got) != 0 {
			rt.Fatalf("bucket %q after the delete", got)
		}
	})
}

func TestRefusedFileNamesTouchNothing(t *testing.T) {
	refused := []string{
		"", ".", "..", "a/b", "/", "a/", `a\b`, `\`, "a\x00b", "a\nb", "a\tb", "\r", "\x1b[31m", "\x7f", "a\u0085b",
		"\ufffe", "a\uffff", strings.Repeat("n", bucketRoom+1), strings.Repeat("漢", bucketRoom/3+1), strings.Repeat("n", 1025),
	}
	each(t, func(t *testing.T, p *stage.Place) {
		run(p, p.Upload("m1", "a.txt", "one"))
		p.AWS.ResetCounts()
		var ids []string
		for _, name := range refused {
			upload, reupload, rename := p.Upload("new", name, "x"), p.Upload("m1", name, "x"), p.Rename("m1", "a.txt", name)
			for _, e := range []events.Event{upload, reupload, rename} {
				ids = append(ids, insert(p, e.Type(), marshal(t, e)))
			}
		}
		finish(p.Stage)
		for i, id := range ids {
			if e := p.Event(id); e.String() != "dead invalid_event" || !utf8.ValidString(*e.Error) {
				t.Errorf("name %q: %s", refused[i/3], e)
			}
		}
		if got := calls(p); len(got) > 0 {
			t.Errorf("calls %v", got)
		}
		wantContents(t, p, contents{"media/a.txt": "one"})
		wantKeys(t, p, map[string]string{"m1": "media/a.txt", "new": "none"})
		wantPossibleWrites(t, p)
	})
}

// What a delete removes is the ledger's key: a name that can't be a key's is
// no reason to keep the file.
func TestADeleteDoesNotNeedItsFileName(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := run(p, p.Upload("m1", "a.txt", "one"), p.Delete("m1", strings.Repeat("n", bucketRoom+1)),
			p.Delete("m2", strings.Repeat("n", bucketRoom+1)))
		wantStates(t, p, ids, "completed done", "completed done", "dead invalid_event")
		wantContents(t, p, contents{})
	})
}

func TestTheDirectoryCountsTowardsAKeysLength(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		dev := development(p)
		room := 1024 - len(bucket.KeyPrefix("media", dev.Integration().Directory))
		ids := run(dev, p.Upload("m1", strings.Repeat("n", room), "fits"), p.Upload("m2", strings.Repeat("n", room+1), "doesn't"))
		wantStates(t, dev, ids, "completed done", "dead invalid_event")
		wantContents(t, dev, contents{dev.KeyPrefix() + strings.Repeat("n", room): "fits"})
	})
}
