package bucket_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestDirectoryIsAReadableSlugAndAHash(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"my-service":                   "my-service-e43fea3ed949",
		"SERVICE#Ab__cd":               "service-ab-cd-73e2ca1e7840",
		"開発":                           "env-437a172d7b13",
		"--a--":                        "a-971a854a7deb",
		strings.Repeat("a", 50):        strings.Repeat("a", 40) + "-160b4e433e38",
		strings.Repeat("a", 39) + "-b": strings.Repeat("a", 39) + "-e14f2e13e242",
	} {
		if got := bucket.Directory(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

func TestDirectoriesDifferWheneverServicesDo(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}-[0-9a-f]{12}$`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
		if a != b && bucket.Directory(a) == bucket.Directory(b) {
			t.Errorf("%q and %q share %q", a, b, bucket.Directory(a))
		}
		if d := bucket.Directory(a); !form.MatchString(d) {
			t.Errorf("%q: %q", a, d)
		}
	})
}

func TestKeysOfEachPlace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ prefix, directory, name, want string }{
		{"", "", "a.png", "a.png"},
		{"media", "", "a.png", "media/a.png"},
		{"media/path", "", "a b+ム.png", "media/path/a b+ム.png"},
		{"media", "dev-0123456789ab", "a.png", "media/dev-0123456789ab/a.png"},
		{"", "dev-0123456789ab", "a.png", "dev-0123456789ab/a.png"},
		{"/media/", "dev-0123456789ab/", "a.png", "media/dev-0123456789ab/a.png"},
		{"media", "", "が.png", "media/が.png"}, // NFC
		{"media", "", "が.png", "media/が.png"}, // NFD
	} {
		got, err := bucket.Key(tc.prefix, tc.directory, tc.name)
		if err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
		if name := bucket.FileName(got); name != tc.name {
			t.Errorf("the file name of %q is %q", got, name)
		}
	}
}

func TestNamesThatLeaveTheirDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", ".", "..", "a/b", "../a", `a\b`, "a\x00", "a\n", "a\x7f", "\xff", "a\ufffe", strings.Repeat("a", 1019),
	} {
		key, err := bucket.Key("media", "", name)
		if f := failure.Of(err); f == nil || f.Class != failure.Permanent || f.Code != failure.InvalidEvent {
			t.Errorf("%q: %q, %v", name, key, err)
		}
	}
	if _, err := bucket.Key("media", "", strings.Repeat("a", 1018)); err != nil {
		t.Errorf("a key of 1,024 bytes: %v", err)
	}
}

func FuzzKeyNeverLeavesItsPrefix(f *testing.F) {
	for _, seed := range [][3]string{
		{"media", "dev", "a.png"}, {"folder", "", "foo"}, {"", "", ".."}, {"a/b", "c", "日本 語+%.png"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, prefix, directory, name string) {
		key, err := bucket.Key(prefix, directory, name)
		if err != nil {
			return
		}
		below := bucket.KeyPrefix(prefix, directory)
		if below != "" && !strings.HasSuffix(below, "/") {
			t.Errorf("prefix %q has no slash at its end", below)
		}
		rest, ok := strings.CutPrefix(key, below)
		if !ok || rest != name || rest == "" || strings.ContainsAny(rest, "/\\") || rest == ".." {
			t.Errorf("key %q isn't a file directly below %q", key, below)
		}
		if len(key) > 1024 {
			t.Errorf("%d bytes", len(key))
		}
	})
}

func TestKeysOfNeighbouringFoldersNeverMeet(t *testing.T) {
	t.Parallel()
	key, err := bucket.Key("folderfoo", "", "a.png")
	if err != nil {
		t.Fatal(err)
	}
	if below := bucket.KeyPrefix("folder", ""); strings.HasPrefix(key, below) {
		t.Errorf("%q is below %q", key, below)
	}
}

func TestURLsOfEachDomain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ domain, key, want string }{
		{"", "media/a.png", "https://alpha.s3.ap-northeast-1.amazonaws.com/media/a.png"},
		{"https://media.example.com", "media/a.png", "https://media.example.com/media/a.png"},
		{"https://media.example.com/", "a b+c~d%'.png", "https://media.example.com/a%20b%2Bc~d%25%27.png"},
		{"https://media.example.com", "m/画像.png", "https://media.example.com/m/%E7%94%BB%E5%83%8F.png"},
	} {
		if got := bucket.URL(tc.domain, "alpha", "ap-northeast-1", tc.key); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.key, got, tc.want)
		}
	}
}

func FuzzURLGivesTheKeyBack(f *testing.F) {
	for _, seed := range []string{"a.png", "media/a b+c%.png", "画像/😀~.png", "a?b#c", "\x01\xff"} {
		f.Add(seed)
	}
	const domain = "https://media.example.com"
	encoded := regexp.MustCompile(`^(?:[A-Za-z0-9._~/-]|%[0-9A-F]{2})*$`)
	f.Fuzz(func(t *testing.T, key string) {
		path, ok := strings.CutPrefix(bucket.URL(domain, "alpha", "r", key), domain+"/")
		if !ok || !encoded.MatchString(path) {
			t.Fatalf("%q: path %q", key, path)
		}
		if got, err := url.PathUnescape(path); err != nil || got != key {
			t.Errorf("%q comes back as %q, %v", key, got, err)
		}
		if strings.Count(path, "/") != strings.Count(key, "/") {
			t.Errorf("%q: other segments in %q", key, path)
		}
	})
}

func TestVersionsAreSpelledToTheSecondInUTC(t *testing.T) {
	t.Parallel()
	for us, want := range map[int64]string{
		stamp.Version:         "20250812154922",
		0:                     "19700101000000",
		1_755_013_762_999_999: "20250812154922",
	} {
		if got := bucket.FormatVersion(us); got != want {
			t.Errorf("%d: %s, want %s", us, got, want)
		}
	}
}
