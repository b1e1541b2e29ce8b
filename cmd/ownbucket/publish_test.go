package main_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
		s.refusesToPublish(c.name, path, c.reason)
	}
	if listed := s.list("events", "list"); len(listed) != 0 {
		t.Errorf("events were published: %v", listed)
	}
}

// refusesToPublish has a file refused for that reason, also on standard input, and in
// little memory.
func (s *shell) refusesToPublish(name, path, reason string) {
	s.t.Helper()
	for _, standardInput := range []bool{false, true} {
		r, peak := s.measured(path, standardInput)
		if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, reason) || len(r.stderr) > 1000 {
			s.t.Errorf("%s: exit code %d, stdout %q, stderr %.1000q", name, r.code, r.stdout, r.stderr)
		}
		if peak > maxMemory {
			s.t.Errorf("%s: %d MiB of memory", name, peak>>20)
		}
	}
}

func TestPublishRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	line := upload("m1", "a.txt", "2026-01-02T03:04:05Z")
	with := func(field string) string { return strings.Replace(line, `"source":`, field+`,"source":`, 1) }
	deep := strings.Repeat("[", 1<<19)
	for _, c := range []struct{ name, input, reason string }{
		{"invalid UTF-8", strings.Replace(line, "a.txt", "a\xff.txt", 1), "line 1: invalid event: envelope is not valid UTF-8"},
		{"a NUL", strings.Replace(line, "a.txt", "a\x00.txt", 1), `line 1: invalid event: envelope is not valid JSON: invalid character '\x00'`},
		{"NULs alone", strings.Repeat("\x00", 1000), "line 1: invalid event: envelope is not valid JSON"},
		{"an escaped NUL", strings.Replace(line, "a.txt", `a\u0000.txt`, 1), "file_name must not contain the control character U+0000"},
		{"half a surrogate pair", strings.Replace(line, "a.txt", `\ud800`, 1), "half of a surrogate pair"},
		{"deep nesting", deep, "line 1: invalid event: envelope is not valid JSON: invalid character '[' exceeded max depth"},
		{"deep nesting in an unknown field", with(`"x":` + deep[1<<18:] + strings.Repeat("]", 1<<18)), "exceeded max depth"},
		{"a size above 64 bits", with(`"size":9223372036854775808`), "size must be an integer of at most 64 bits"},
		{"a size of many digits", with(`"size":` + strings.Repeat("9", 1<<19)), "size must be an integer of at most 64 bits"},
		{"a size with an exponent", with(`"size":1e999999999`), "size must be an integer of at most 64 bits"},
		{"a negative size", with(`"size":-1`), "size must not be negative"},
		{"a long name", strings.Replace(line, "a.txt", strings.Repeat("x", 1<<19), 1), "file_name is 524288 bytes long, of at most 1024"},
		{"a long unknown field", `{"` + strings.Repeat("x", 1<<19) + `":1}`, "envelope holds the unknown field"},
		{"the same field twice", strings.Replace(line, `{"type"`, `{"type":"MediaDeleted","type"`, 1), `holds the field "type" twice`},
		{"a byte order mark", "\ufeff" + line, "line 1: invalid event: envelope is not valid JSON"},
		{"a cut line", line[:len(line)-20], "unexpected end of JSON input"},
		{"a bad line after a good one", line + "\n{}", "line 2: invalid event"},
	} {
		s.file("events.jsonl", c.input)
		s.refusesToPublish(c.name, filepath.Join(s.root, "events.jsonl"), c.reason)
	}
	if listed := s.list("events", "list"); len(listed) != 0 {
		t.Errorf("events were published: %v", listed)
	}
}

// endless is an input that never ends.
type endless string

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

func TestPublishEndsWhereItsInputDoesNot(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	blanks := strings.Repeat(" ", 1<<14) + "\n"
	for input, reason := range map[endless]string{
		"x":             "line 1 is longer than 1 MiB",
		endless(blanks): "more than 64 MiB",
		endless(upload("m1", "a.txt", "2026-01-02T03:04:05Z") + blanks): "more than 64 MiB",
		"{}\n": "line 20: ",
	} {
		command := exec.CommandContext(t.Context(), binary, "publish")
		in, err := command.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan struct{})
		go func() {
			defer close(written)
			io.Copy(in, input) // until the program ends
		}()
		r := s.finish(command)
		<-written
		if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, reason) || len(r.stderr) > 2000 {
			t.Errorf("%.10q: exit code %d, stdout %q, stderr %.2000q", input, r.code, r.stdout, r.stderr)
		}
		if usage, _ := command.ProcessState.SysUsage().(*syscall.Rusage); usage.Maxrss<<10 > maxMemory {
			t.Errorf("%.10q: %d MiB of memory", input, usage.Maxrss>>10)
		}
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
