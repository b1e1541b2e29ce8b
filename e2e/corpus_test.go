package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"mime"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// goroot is where the Go distribution is installed.
func goroot(t testing.TB) string {
	t.Helper()
	printed, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("find the Go distribution: %v", err)
	}
	return strings.TrimSpace(string(printed))
}

// corpus picks n real files below a root: of every kind that there is, those
// that stand first, so that rare kinds are all there, and then what else fits.
func corpus(t testing.TB, root string, n int) []content {
	t.Helper()
	const most = 16 << 20 // bytes of one file
	byKind := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Size() > most {
			return err
		}
		kind := strings.ToLower(filepath.Ext(path))
		byKind[kind] = append(byKind[kind], path)
		return nil
	})
	if err != nil {
		t.Fatalf("list %s: %v", root, err)
	}
	// Kinds in turn, one file of each per round.
	kinds := make([]string, 0, len(byKind))
	for kind := range byKind {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	var picked []content
	for round := 0; len(picked) < n; round++ {
		before := len(picked)
		for _, kind := range kinds {
			if round < len(byKind[kind]) && len(picked) < n {
				picked = append(picked, readContent(t, root, byKind[kind][round]))
			}
		}
		if len(picked) == before {
			t.Fatalf("%s has %d files, and the test needs %d", root, len(picked), n)
		}
	}
	return picked
}

func readContent(t testing.TB, root, path string) content {
	t.Helper()
	bytes, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	source, err := filepath.Rel(root, path)
	if err != nil {
		t.Fatal(err)
	}
	kind := mime.TypeByExtension(filepath.Ext(path))
	if kind == "" {
		kind = "application/octet-stream"
	}
	sum := sha256.Sum256(bytes)
	return content{source: source, kind: kind, size: int64(len(bytes)), sum: hex.EncodeToString(sum[:])}
}

// awkward are file names that break what joins, decodes, escapes or
// normalises strings.
var awkward = []string{
	"写真 1.png",
	"か\u3099くせい.txt", // NFD
	"がくせい.txt",       // the same in NFC: another file
	"🎉👩‍👩‍👧.jpg",
	"a b+c%20d.txt",
	"100%.txt",
	"%2F%2e%2e.txt",
	`"quoted" 'too'.txt`,
	"a&b=c?d#e;f.txt",
	"<tag>&amp;.html",
	"a*b~c!(d).txt",
	"[x]{y}|^`$@,.txt",
	" leading and trailing ",
	"a..b",
	".hidden",
	"-rf",
	"émigré ñ ß.txt",
	"العربية.txt",
}

// plain are file names that break nothing.
var plain = []string{
	"a.png", "b.txt", "c.TXT", "d-e_f.jpg", "README", ".hidden", "a..b", "0", "index.html", "x.y.z",
}

// nameOf makes a name of its own for the i-th file: every other has one that
// is awkward.
func nameOf(i int, c content, awkwardNames []string) string {
	name := strconv.Itoa(i) + "-" + filepath.Base(c.source)
	if i%2 == 0 || len(awkwardNames) == 0 {
		return name
	}
	return strconv.Itoa(i) + awkwardNames[i/2%len(awkwardNames)]
}
