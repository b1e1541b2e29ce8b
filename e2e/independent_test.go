package e2e_test

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestTheBucketFollowsTheEventsOnEveryServer plays one scenario on our own
// stand-in and on those that others wrote.
func TestTheBucketFollowsTheEventsOnEveryServer(t *testing.T) {
	for _, server := range []struct {
		name  string
		start func(testing.TB) *site
		// What the server can't do, and why, is all that a scenario leaves out.
		names []string
	}{
		{name: "awslocal", start: ownSite, names: awkward},
		// Signatures aren't checked.
		{name: "moto", start: motoSite, names: awkward},
		// moto takes an upload's key with a space, "+", "%" or non-ASCII for a
		// wrong signature.
		{name: "moto checks rights", start: checkedMotoSite, names: plain},
		{name: "versitygw", start: versitySite, names: awkward},
	} {
		t.Run(server.name, func(t *testing.T) {
			long(t)
			t.Parallel()
			at := server.start(t)
			play(t, at, server.names)
			if at.cloud != nil {
				at.cloud.expectNothingBeyondTheManual(t)
			}
		})
	}
}

// scenario is one customer's bucket, and what it should hold.
type scenario struct {
	*installation
	t      testing.TB
	at     *site
	places []*place
	theirs map[string]object
}

// play is the scenario: everything that the manual promises, once.
func play(t *testing.T, at *site, names []string) {
	root := t.TempDir()
	i := install(t, "sqlite:"+filepath.Join(t.TempDir(), "ownbucket.db"), root, at.clouds)
	production := i.production("SERVICE#1", at.account)
	s := &scenario{installation: i, t: t, at: at, places: []*place{production}, theirs: map[string]object{}}
	for _, key := range []string{"index.html", sitePrefix + "/taken.txt", sitePrefix + "foo/a.txt"} {
		s.theirs[key] = at.put(t, key)
	}
	first, second, taken := write(t, root, "first", len(names)), write(t, root, "second", len(names)), "taken.txt"
	media := func(n int) string { return fmt.Sprintf("media-%d", n) }
	// each makes one event for each media.
	each := func(event func(n int) line) []line {
		lines := make([]line, len(names))
		for n := range names {
			lines[n] = event(n)
		}
		return lines
	}
	p := production

	s.step("upload", each(func(n int) line { return p.upload(media(n), names[n], first[n], told(n%3)) }))
	s.step("re-upload", each(func(n int) line { return p.upload(media(n), names[n], second[n], told(n%3)) }))
	s.step("re-upload under another name", each(func(n int) line {
		return p.upload(media(n), "2 "[n%2:]+names[n], first[n], sizeAndSum)
	}))
	s.step("rename", each(func(n int) line { return p.rename(media(n), "3"+names[(n+1)%len(names)]) }))

	a, b := p.media[media(0)].name, p.media[media(1)].name
	s.step("swap through a third name", []line{
		p.rename(media(0), "third"), p.rename(media(1), a), p.rename(media(0), b),
	})
	s.stepEnds("take a stranger's key", "dead key_taken", []line{
		p.line(p.uploaded("unlucky", taken, first[0])),
		p.line(p.renamed(media(2), taken)),
	})

	dev, created := p.create("dev", "shop-dev")
	s.places = append(s.places, dev)
	// What production does right after isn't the environment's.
	s.step("copy the environment", []line{
		created, p.rename(media(0), "renamed after"), p.upload(media(1), p.media[media(1)].name, second[1], sizeAndSum), p.remove(media(2)),
	})
	s.step("change the environment", []line{
		dev.rename(media(0), names[0]), dev.upload(media(1), dev.media[media(1)].name, second[0], sizeAndSum), dev.remove(media(2)),
	})

	replaced := p.prefix() + p.media[media(3)].name
	s.theirs[replaced] = at.put(t, replaced)
	s.step("delete what a stranger replaced", []line{p.remove(media(3))})

	at.put(t, dev.prefix()+"theirs/too.txt")
	s.step("delete the environment", []line{dev.destroy()})
	var deletes []line
	for _, m := range slices.Sorted(maps.Keys(p.media)) {
		deletes = append(deletes, p.remove(m))
	}
	s.step("delete", deletes)
	expect(t, "the end", at.objects(t), s.theirs)
}

func (s *scenario) step(name string, lines []line) {
	s.t.Helper()
	s.stepEnds(name, "completed done", lines)
}

// stepEnds publishes and works, and compares how the events ended and what the
// bucket then holds.
func (s *scenario) stepEnds(name, end string, lines []line) {
	s.t.Helper()
	published := s.publish(lines...)
	s.work(1)
	for _, row := range s.events() {
		if slices.Contains(published, row.EventID) && row.end() != end {
			s.t.Errorf("%s: event %d, %s: %s, want %s: %s", name, row.Sequence, row.Type, row.end(), end, row.Error)
		}
	}
	expect(s.t, name, s.at.objects(s.t), s.theirs, s.places...)
}

// write makes n files of all sizes that are treated in different ways: empty,
// held in memory, streamed.
func write(t testing.TB, root, name string, n int) []content {
	t.Helper()
	sizes := []int{0, 1, 4 << 10, 100_000, 1<<20 + 1, 3 << 20}
	made := make([]content, n)
	for i := range made {
		bytes := make([]byte, sizes[i%len(sizes)])
		if _, err := rand.Read(bytes); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, fmt.Sprintf("%s %d.png", name, i))
		if err := os.WriteFile(path, bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		made[i] = readContent(t, root, path)
	}
	return made
}
