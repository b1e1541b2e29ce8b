package media_test

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFileNamesAreTakenRaw(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sources := newSources(t, media.Options{FileRoot: root})
	for _, path := range []string{
		"a.txt", "a%20b", "a b+c?.txt", "a#b", "%2e%2e", "..a", "a:b", `a\b`, "-", " ", "'\"", "😀.png",
		"写真/\u304c.jpg", "写真/\u304b\u3099.jpg", "deep/er/a.txt", "file:a", "a\nb",
	} {
		write(t, filepath.Join(root, path), path)
		got, _, err := receive(t, sources, "file:"+path, sized(len(path)), sumOf([]byte(path)))
		if err != nil || string(got) != path {
			t.Errorf("%q: got %q, %v", path, got, err)
		}
	}
	if got, _, err := receive(t, sources, "file:deep/../a.txt", nil, ""); err != nil || string(got) != "a.txt" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFilesOutsideOfTheRootAreRefused(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
	write(t, filepath.Join(outside, "secret"), "secret")
	write(t, filepath.Join(root, "in", "inside"), "inside")
	for name, target := range map[string]string{
		"absolute":    filepath.Join(outside, "secret"),
		"relative":    "../outside/secret",
		"directory":   "../outside",
		"own":         filepath.Join(root, "in", "inside"),
		"good":        "in/inside",
		"in/good":     "../in/inside",
		"in/relative": "../../outside/secret",
		"dangling":    "in/nothing",
		"loop":        "loop",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fifo", filepath.Join(root, "to-fifo")); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ path, code string }{
		{"in/inside", ""},
		{"good", ""},
		{"in/good", ""},
		{"absolute", failure.SourceRefused},
		{"own", failure.SourceRefused}, // absolute links are never followed
		{"relative", failure.SourceRefused},
		{"directory/secret", failure.SourceRefused},
		{"in/relative", failure.SourceRefused},
		{"loop", failure.SourceRefused},
		{"../outside/secret", failure.SourceRefused},
		{"in/../../outside/secret", failure.SourceRefused},
		{filepath.Join(outside, "secret"), failure.SourceRefused},
		{"//" + filepath.Join(outside, "secret"), failure.SourceRefused},
		{"", failure.SourceRefused},
		{".", failure.SourceRefused},
		{"in", failure.SourceRefused},
		{"fifo", failure.SourceRefused},
		{"to-fifo", failure.SourceRefused},
		{"in/inside\x00", failure.SourceRefused},
		{strings.Repeat("x", 300), failure.SourceRefused},
		{"missing", failure.SourceGone},
		{"dangling", failure.SourceGone},
		{"in/inside/below", failure.SourceGone},
		{"missing/missing", failure.SourceGone},
	}
	sources := newSources(t, media.Options{FileRoot: root})
	for _, test := range tests {
		got, _, err := receive(t, sources, "file:"+test.path, nil, "")
		if test.code == "" {
			if err != nil || string(got) != "inside" {
				t.Errorf("%s: got %q, %v", test.path, got, err)
			}
			continue
		}
		wantFailure(t, err, failure.Permanent, test.code)
	}
}

func TestFileLiesAreFound(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	path := filepath.Join(root, "f")
	sources := newSources(t, media.Options{FileRoot: root})
	for _, length := range []int{0, 5, 2 * mebibyte} {
		content := randomBytes(length)
		write(t, path, string(content))
		if _, _, err := receive(t, sources, "file:f", nil, strings.ToUpper(sumOf(content))); err != nil {
			t.Error(err)
		}
		_, _, err := receive(t, sources, "file:f", sized(length+1), "")
		wantFailure(t, err, failure.Permanent, failure.SizeMismatch)
		_, _, err = receive(t, sources, "file:f", nil, sumOf([]byte("other")))
		wantFailure(t, err, failure.Permanent, failure.ChecksumMismatch)
		_, _, err = receive(t, sources, "file:f", sized(-1), "")
		wantFailure(t, err, failure.Permanent, failure.InvalidEvent)
		_, _, err = receive(t, sources, "file:f", nil, "abc")
		wantFailure(t, err, failure.Permanent, failure.InvalidEvent)
	}
}

func TestFileThatChangesWhileItIsSentIsFound(t *testing.T) {
	t.Parallel()
	for name, length := range map[string]int64{"cut": mebibyte, "grown": 3 * mebibyte} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			path := filepath.Join(root, "f")
			write(t, path, string(make([]byte, 2*mebibyte)))
			content, err := newSources(t, media.Options{FileRoot: root}).Open(testContext(t), media.Upload{Source: "file:f"})
			if err != nil {
				t.Fatal(err)
			}
			defer content.Body.Close()
			if err := os.Truncate(path, length); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(content.Body)
			wantFailure(t, err, failure.Permanent, failure.SizeMismatch)
			if int64(len(got)) >= content.Size {
				t.Errorf("all %d bytes were given out", len(got))
			}
		})
	}
}

func TestUnreadableFileIsOurOwnFault(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	root := t.TempDir()
	write(t, filepath.Join(root, "f"), "x")
	if err := os.Chmod(filepath.Join(root, "f"), 0); err != nil {
		t.Fatal(err)
	}
	_, _, err := receive(t, newSources(t, media.Options{FileRoot: root}), "file:f", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeDenied)
}

func TestMemoryDoesNotGrowWithTheFile(t *testing.T) { // alone: it counts the process's allocations
	const length = 256 * mebibyte
	root := t.TempDir()
	write(t, filepath.Join(root, "big"), "")
	if err := os.Truncate(filepath.Join(root, "big"), length); err != nil {
		t.Fatal(err)
	}
	sources := newSources(t, media.Options{FileRoot: root})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	content, err := sources.Open(testContext(t), media.Upload{Source: "file:big", Size: sized(length)})
	if err != nil {
		t.Fatal(err)
	}
	defer content.Body.Close()
	n, err := io.Copy(io.Discard, content.Body)
	if err != nil || n != length {
		t.Fatalf("%d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > mebibyte {
		t.Errorf("%d bytes were allocated for a file of %d", used, length)
	}
}
