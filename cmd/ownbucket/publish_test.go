package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// maxMemory leaves room for what the test's own process takes: Linux counts that
// too, since the program begins in it.
const maxMemory = 256 << 20

func repeatFile(t *testing.T, path, content string, times int) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for range times {
		if _, err := file.WriteString(content); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPublishRefusesWhatMemoryShouldNotHold(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	line := upload("m1", "a.txt", "2026-01-02T03:04:05Z")
	for _, c := range []struct {
		name, begin string
		size        int64
		reason      string
	}{
		{"no line ends", "", 1 << 30, "line 1 is longer than 1 MiB"},
		{"a long second line", line + "\n", 1 << 30, "line 2 is longer than 1 MiB"},
		{"valid lines without end", strings.Repeat(line+strings.Repeat(" ", 1<<19)+"\n", 2), 0, "more than 64 MiB"},
	} {
		path := filepath.Join(s.root, "events.jsonl")
		if err := os.WriteFile(path, []byte(c.begin), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.size > 0 {
			if err := os.Truncate(path, c.size); err != nil {
				t.Fatal(err)
			}
		} else {
			repeatFile(t, path, c.begin, 128)
		}
		for _, standardInput := range []bool{false, true} {
			r, peak := s.measured(path, standardInput)
			if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, c.reason) || len(r.stderr) > 1000 {
				t.Errorf("%s: exit code %d, stdout %q, stderr %.1000q", c.name, r.code, r.stdout, r.stderr)
			}
			if peak > maxMemory {
				t.Errorf("%s: %d MiB of memory", c.name, peak>>20)
			}
		}
	}
	if listed := s.list("events", "list"); len(listed) != 0 {
		t.Errorf("events were published: %v", listed)
	}
}

func TestPublishHoldsALargeFileInBoundedMemory(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	const count = 20_000
	s.file("events.jsonl", strings.Repeat(upload("m1", "a.txt", "2026-01-02T03:04:05Z")+"\n", count))
	r, peak := s.measured(filepath.Join(s.root, "events.jsonl"), false)
	if r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	if peak > maxMemory {
		t.Errorf("%d MiB of memory", peak>>20)
	}
	if events, _ := s.object("stats")["events"].(map[string]any); events["available"] != float64(count) {
		t.Errorf("published: %v", events)
	}
}
