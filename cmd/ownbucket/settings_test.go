package main_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

func TestSetChangesTheNamedFieldsAlone(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	s.setIntegration("--memo", "hello", "--pin-file-names")
	for _, c := range []struct {
		args []string
		want map[string]any
	}{
		{nil, map[string]any{"memo": "hello", "pin_file_names": true, "prefix": "media", "bucket": bucketName}},
		{[]string{"--pin-file-names=false"}, map[string]any{"pin_file_names": false, "memo": "hello"}},
		{[]string{"--pin-file-names=true", "--memo", ""}, map[string]any{"pin_file_names": true, "memo": ""}},
		{[]string{"--prefix", ""}, map[string]any{"prefix": "", "key_prefix": "", "bucket": bucketName}},
	} {
		if c.args != nil {
			s.ok(append([]string{"integration", "set", "--service", "S1"}, c.args...)...)
		}
		shown := s.object("integration", "show", "--service", "S1")
		for field, want := range c.want {
			if diff := cmp.Diff(want, shown[field]); diff != "" {
				t.Errorf("set %v: %s: %s", c.args, field, diff)
			}
		}
	}
}

func TestSettingsOfAnEnvironmentHaveItsDirectory(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	s.setIntegration("--environment", "staging", "--environment-service-id", "S1 Staging")
	shown := s.object("integration", "show", "--service", "S1", "--environment", "staging")
	directory, _ := shown["directory"].(string)
	if !strings.HasPrefix(directory, "s1-staging-") || shown["key_prefix"] != "media/"+directory+"/" {
		t.Errorf("environment's settings: %v", shown)
	}
	if r := s.run("", "integration", "show", "--service", "S1", "--environment", ""); r.code != 1 {
		t.Errorf(`--environment "" is production, which has no settings: exit code %d`, r.code)
	}
	listed := s.list("integration", "list")
	if diff := cmp.Diff([]map[string]any{shown}, listed); diff != "" {
		t.Errorf("show and list differ: %s", diff)
	}
	s.ok("integration", "delete", "--service", "S1", "--environment", "staging", "--reason", "test")
	if left := s.list("integration", "list"); len(left) != 0 {
		t.Errorf("left after the deletion: %v", left)
	}
}

func TestSignedSourceIsShownWithoutItsSignature(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	line := strings.Replace(upload("m1", "a.txt", "2026-01-02T03:04:05Z"), "file:source",
		"https://cms.example/a.txt?X-Amz-Signature=topsecret", 1)
	answer := s.publish(line)
	ids, _ := answer["event_ids"].([]any)
	id, _ := ids[0].(string)
	for _, output := range []string{"json", "table"} {
		shown := s.ok("events", "show", id, "--output", output)
		if strings.Contains(shown, "topsecret") || !strings.Contains(shown, "https://cms.example/a.txt") {
			t.Errorf("%s: %s", output, shown)
		}
	}
}

func TestTableNeverSteersTheTerminal(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLiteURL(t)
	s := newShell(t, url)
	if _, err := dbtest.Open(t, url).ExecContext(t.Context(), `
		INSERT INTO outbox (event_id, type, service_id, environment_id, data) VALUES (?, ?, 'S1', '', '{}')`,
		id, "a\x1b[2Jb"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"events", "list"}, {"events", "show", id}} {
		if shown := s.ok(args...); strings.ContainsRune(shown, '\x1b') {
			t.Errorf("%v prints an escape sequence: %q", args, shown)
		}
	}
}

func TestEveryBadLineIsNamed(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	good := upload("m1", "a.txt", "2026-01-02T03:04:05Z")
	r := s.run(strings.Join([]string{good, "nonsense", "", good, `{"type":"MediaLost"}`}, "\n"), "publish")
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if r.code != 1 || len(lines) != 2 || !strings.HasPrefix(lines[0], "line 2: ") || !strings.HasPrefix(lines[1], "line 5: ") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
}

func TestNothingToPublishIsNoFailure(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	want := map[string]any{"published": 0.0, "duplicates": 0.0, "event_ids": []any{}}
	if diff := cmp.Diff(want, s.publish("", "  ")); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownIDKeepsAnActionFromChangingAnything(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	answer := s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"))
	ids, _ := answer["event_ids"].([]any)
	known, _ := ids[0].(string)
	if r := s.run("", "events", "discard", known, id, "--reason", "test"); r.code != 1 || !strings.Contains(r.stderr, id) {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
	if shown := s.object("events", "show", known); shown["state"] != "available" {
		t.Errorf("the other event is %v", shown["state"])
	}
}
