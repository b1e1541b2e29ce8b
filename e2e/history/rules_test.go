package history_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/events"
)

// The model's own rules, one event after the other of one or two media. A case
// begins with media m1 at "a".
func TestTheModelKeepsTheRules(t *testing.T) {
	t.Parallel()
	upload := func(media, name, from string) *act {
		return &act{kind: events.MediaUploadedType, media: media, name: name, from: from}
	}
	rename := func(media, from, to string) *act {
		return &act{kind: events.MediaRenamedType, media: media, from: from, name: to}
	}
	remove := func(media, name string) *act {
		return &act{kind: events.MediaDeletedType, media: media, name: name}
	}
	missing := func(a *act) *act { a.missing = true; return a }
	for _, c := range []struct {
		name   string
		pinned bool
		acts   []*act
		ends   []string
		m1     string // its name in the end
	}{
		{"a rename", false, []*act{rename("m1", "a", "b")}, []string{done}, "b"},
		{"a re-upload under another name", false, []*act{upload("m1", "b", "a")}, []string{done}, "b"},
		{"a name given up", false, []*act{rename("m1", "a", "b"), upload("m2", "a", "")}, []string{done, done}, "b"},
		{"a name that is held", false, []*act{upload("m2", "a", "")}, []string{keyTaken}, "a"},
		{"a pinned rename", true, []*act{rename("m1", "a", "b")}, []string{namePinned}, "a"},
		{"a pinned re-upload", true, []*act{upload("m1", "b", ""), upload("m1", "a", "")}, []string{namePinned, done}, "a"},
		{"a deletion", false, []*act{remove("m1", "a"), remove("m1", "a")}, []string{done, skipped}, ""},
		{"an upload of a media that was deleted", false, []*act{remove("m1", "a"), upload("m1", "b", "")}, []string{done, done}, "b"},
		{"a rename of nothing", false, []*act{rename("m2", "b", "c")}, []string{skipped}, "a"},
		{"a rename of what died", false, []*act{missing(upload("m2", "b", "")), rename("m2", "b", "c")},
			[]string{sourceGone, predecessorDead}, "a"},
		{"a re-upload that died", false, []*act{missing(upload("m1", "b", "a")), rename("m1", "a", "c")}, []string{sourceGone, done}, "c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStand()
			s.apply(upload("m1", "a", ""))
			s.pinned = c.pinned
			for i, a := range c.acts {
				a.n = int64(i + 1)
				if got := s.apply(a); got != c.ends[i] {
					t.Errorf("event %d is %s, not %s", i, got, c.ends[i])
				}
			}
			if got := s.objects["m1"].name; got != c.m1 {
				t.Errorf("m1 is at %q, not %q", got, c.m1)
			}
		})
	}
}

// A dead upload that is replayed comes before the events that ran meanwhile.
func TestAReplayIsOlderThanWhatRanMeanwhile(t *testing.T) {
	t.Parallel()
	s := newStand()
	dead := &act{n: 1, kind: events.MediaUploadedType, media: "m1", name: "a", missing: true}
	if got := s.apply(dead); got != sourceGone {
		t.Fatal(got)
	}
	if got := s.apply(&act{n: 2, kind: events.MediaUploadedType, media: "m1", name: "b"}); got != done {
		t.Fatal(got)
	}
	dead.missing = false
	if got := s.apply(dead); got != superseded || s.objects["m1"].name != "b" {
		t.Errorf("the replay is %s, and the media at %q", got, s.objects["m1"].name)
	}
}
