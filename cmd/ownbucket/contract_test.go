package main_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/dbtest"
)

// has fails for each field that an object lacks.
func has(t *testing.T, what string, object map[string]any, fields ...string) {
	t.Helper()
	for _, field := range fields {
		if _, ok := object[field]; !ok {
			t.Errorf("%s lacks %q: it has %v", what, field, slices.Sorted(maps.Keys(object)))
		}
	}
}

func lacks(t *testing.T, what string, object map[string]any, fields ...string) {
	t.Helper()
	for _, field := range fields {
		if value, ok := object[field]; ok {
			t.Errorf("%s has %q, which isn't known: %v", what, field, value)
		}
	}
}

const id = "0198c5f2-1f5e-7c55-b1f3-0f4a4d6c9a10"

func TestShapesOfTheContractAreKept(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newShell(t, url)
		for _, list := range [][]string{{"events", "list"}, {"integration", "list"}, {"environments", "list"}} {
			if got := strings.TrimSpace(s.ok(append(list, "--output", "json")...)); got != "[]" {
				t.Errorf("an empty %v is %q, not []", list, got)
			}
		}
		s.setIntegration("--custom-domain", "https://media.example.com", "--memo", "hello")
		s.file("source", "content")

		answer := s.publish(strings.Replace(upload("m1", "a b.txt", "2026-01-02T03:04:05Z"), `{`, `{"event_id":"`+id+`",`, 1),
			upload("m2", "b.txt", "2026-01-02T03:04:05Z"))
		has(t, "publish", answer, "published", "duplicates", "event_ids")
		again := s.publish(strings.Replace(upload("m1", "a b.txt", "2026-01-02T03:04:05Z"), `{`, `{"event_id":"`+id+`",`, 1))
		if again["published"] != 0.0 || again["duplicates"] != 1.0 {
			t.Errorf("publishing an ID again: %v", again)
		}

		waiting := s.object("events", "show", id)
		has(t, "a waiting event", waiting, "sequence", "event_id", "type", "service_id", "environment_id", "state",
			"attempt_count", "created_at", "data", "metadata", "attempts")
		lacks(t, "a waiting event", waiting, "outcome", "error_class", "error_code", "error", "next_attempt_at", "finished_at")

		s.ok("worker", "--until-idle", "--timeout", "1m")
		done := s.object("events", "show", id)
		has(t, "a completed event", done, "outcome", "finished_at", "media_id")
		if done["state"] != "completed" || done["outcome"] != "done" || done["environment_id"] != "" {
			t.Errorf("completed event: %v", done)
		}
		attempts, _ := done["attempts"].([]any)
		if len(attempts) != 1 {
			t.Fatalf("a completed event has attempts %v, want one", done["attempts"])
		}
		attempt, _ := attempts[0].(map[string]any)
		has(t, "an attempt", attempt, "number", "started_at", "duration_ms", "worker")

		media := s.object("media", "show", "--service", "S1", "--media", "m1")
		has(t, "a media", media, "media_id", "key", "url", "version", "content_type", "size", "etag", "deleted")
		if media["url"] != "https://media.example.com/media/a%20b.txt" || media["key"] != "media/a b.txt" {
			t.Errorf("media: %v", media)
		}

		settings := s.object("integration", "show", "--service", "S1")
		has(t, "an integration", settings, "service_id", "environment_id", "bucket", "region", "role_arn", "prefix",
			"custom_domain", "pin_file_names", "memo", "distribution_id", "cdn_prefix", "environment_service_id",
			"directory", "key_prefix", "state", "waiting_events", "locked")
		lacks(t, "an active integration", settings, "blocked_reason", "blocked_since", "next_probe_at", "external_id")
		if settings["locked"] != true || settings["state"] != "active" || settings["key_prefix"] != "media/" {
			t.Errorf("integration: %v", settings)
		}

		stats := s.object("stats")
		has(t, "stats", stats, "events", "oldest_available_seconds")
		counts, _ := stats["events"].(map[string]any)
		want := map[string]any{"available": 0.0, "running": 0.0, "retryable": 0.0, "held": 0.0, "completed": 2.0,
			"dead": 0.0, "discarded": 0.0}
		if diff := cmp.Diff(want, counts); diff != "" {
			t.Error(diff)
		}

		s.publish(`{"type":"EnvironmentCreated","service_id":"S1","environment_id":"dev",` +
			`"data":{"source_environment_id":"","environment_service_id":"s1-dev"}}`)
		s.ok("worker", "--until-idle", "--timeout", "1m")
		made := s.list("environments", "list")[0]
		has(t, "an environment", made, "service_id", "environment_id", "source_environment_id", "directory", "state",
			"total", "done", "failed")
		lacks(t, "an environment of a list", made, "failures")
		if made["state"] != "complete" || made["total"] != 2.0 || made["done"] != 2.0 {
			t.Errorf("environment: %v", made)
		}
		has(t, "a shown environment", s.object("environments", "show", "--service", "S1", "--environment", "dev"), "failures")

		if n := len(s.list("events", "list", "--environment", "")); n != 2 {
			t.Errorf("production has %d events in the list, want 2", n)
		}
		if n := len(s.list("events", "list")); n != 3 {
			t.Errorf("all environments have %d events in the list, want 3", n)
		}
		if n := len(s.list("events", "list", "--limit", "1")); n != 1 {
			t.Errorf("--limit 1 lists %d", n)
		}
		if refused := s.aws.Refused(); len(refused) > 0 {
			t.Errorf("refused calls: %+v", refused)
		}
	})
}

func TestBadLinePublishesNothing(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newShell(t, url)
		for _, c := range []struct{ name, line, reason string }{
			{"no JSON", `{`, "line 2: "},
			{"unknown type", `{"type":"MediaLost","service_id":"S1","data":{}}`, "line 2: .*type"},
			{"bad payload", `{"type":"MediaDeleted","service_id":"S1","data":{"media_id":"m"}}`, "line 2: .*file_name"},
			{"no UUID", strings.Replace(upload("m", "n", "2026-01-02T03:04:05Z"), `{`, `{"event_id":"x",`, 1), "line 2: .*event_id"},
		} {
			r := s.run(upload("m1", "a.txt", "2026-01-02T03:04:05Z")+"\n"+c.line+"\n", "publish")
			if r.code != 1 || r.stdout != "" || !regexp.MustCompile(c.reason).MatchString(r.stderr) {
				t.Errorf("%s: exit code %d, stdout %q, stderr %q", c.name, r.code, r.stdout, r.stderr)
			}
		}
		if listed := s.list("events", "list"); len(listed) != 0 {
			t.Errorf("events were published: %v", listed)
		}
	})
}

func TestOperatorFindsRepairsAndReplaysFailures(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newShell(t, url)
		s.setIntegration()
		s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"), upload("m2", "b.txt", "2026-01-02T03:04:05Z"))
		s.ok("worker", "--until-idle", "--timeout", "1m")
		dead := s.list("events", "list", "--state", "dead", "--error-code", "source_gone", "--service", "S1")
		if len(dead) != 2 {
			t.Fatalf("dead events: %v\n%s", dead, s.ok("events", "list"))
		}
		has(t, "a dead event", dead[0], "error_class", "error_code", "error", "finished_at")

		s.file("source", "content")
		counts := s.object("events", "retry", "--state", "dead", "--reason", "restored", "--dry-run")
		want := map[string]any{"matched": 2.0, "changed": 2.0, "skipped": 0.0}
		if diff := cmp.Diff(want, counts); diff != "" {
			t.Error(diff)
		}
		first, _ := dead[0]["event_id"].(string)
		counts = s.object("events", "discard", first, "--reason", "not needed")
		if counts["changed"] != 1.0 {
			t.Errorf("discard: %v", counts)
		}
		counts = s.object("events", "retry", "--service", "S1", "--reason", "restored")
		if diff := cmp.Diff(map[string]any{"matched": 2.0, "changed": 1.0, "skipped": 1.0}, counts); diff != "" {
			t.Error(diff)
		}
		s.ok("worker", "--until-idle", "--timeout", "1m")
		if got := s.aws.Keys(bucketName); !cmp.Equal(got, []string{"media/b.txt"}) {
			t.Errorf("the bucket holds %v", got)
		}

		s.ok("integration", "pause", "--service", "S1", "--reason", "maintenance")
		s.publish(upload("m3", "c.txt", "2026-01-02T03:04:06Z"))
		s.ok("worker", "--until-idle", "--timeout", "1m")
		if held := s.list("events", "list", "--state", "held"); len(held) != 1 {
			t.Errorf("held events: %v", held)
		}
		if paused := s.object("integration", "show", "--service", "S1"); paused["state"] != "paused" || paused["waiting_events"] != 1.0 {
			t.Errorf("paused integration: %v", paused)
		}
		s.ok("integration", "resume", "--service", "S1", "--reason", "over")
		s.ok("worker", "--until-idle", "--timeout", "1m")
		if got := s.aws.Keys(bucketName); len(got) != 2 {
			t.Errorf("after the pause the bucket holds %v", got)
		}
		if r := s.run("", "integration", "delete", "--service", "S1", "--reason", "x"); r.code != 1 || !strings.Contains(r.stderr, "locked") {
			t.Errorf("deleting locked settings: %d %s", r.code, r.stderr)
		}
	})
}

func TestRetryingFailedCopiesCountsWhatItSkips(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newShell(t, url)
		s.setIntegration()
		s.file("source", "content")
		s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05Z"), upload("m2", "b.txt", "2026-01-02T03:04:05Z"))
		s.ok("worker", "--until-idle", "--timeout", "1m")
		s.setIntegration("--environment", "dev", "--environment-service-id", "s1-dev", "--bucket", "another-bucket")
		s.publish(`{"type":"EnvironmentCreated","service_id":"S1","environment_id":"dev",` +
			`"data":{"source_environment_id":"","environment_service_id":"s1-dev"}}`)
		s.ok("worker", "--until-idle", "--timeout", "1m")
		s.ok("integration", "pause", "--service", "S1")
		s.publish(upload("m1", "a.txt", "2026-01-02T03:04:06Z"))
		s.ok("worker", "--until-idle", "--timeout", "1m")

		retry := []string{"environments", "retry-failed", "--service", "S1", "--environment", "dev", "--reason", "test"}
		want := map[string]any{"matched": 2.0, "changed": 1.0, "skipped": 1.0}
		for range 2 {
			if diff := cmp.Diff(want, s.object(append(retry, "--dry-run")...)); diff != "" {
				t.Errorf("dry run (-want +got):\n%s", diff)
			}
		}
		if diff := cmp.Diff(want, s.object(retry...)); diff != "" {
			t.Error(diff)
		}
		db := dbtest.Open(t, url)
		var audit []string
		if err := db.SelectContext(t.Context(), &audit, db.SQL(`
			SELECT target || ': ' || changed || ', ' || reason FROM {audit} WHERE action = 'environments retry-failed'`)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{`service "S1", environment "dev": 1, test`}, audit); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
	})
}

func TestExitCodesTellFailureFromWrongUsage(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	for _, c := range []struct {
		code int
		args []string
	}{
		{2, []string{"nonsense"}},
		{2, []string{}},
		{2, []string{"events", "list", "--limit", "-1"}},
		{2, []string{"events", "list", "--state", "lost"}},
		{2, []string{"events", "list", "--output", "yaml"}},
		{2, []string{"events", "retry", "--reason", "x"}},
		{2, []string{"events", "retry", "--state", "dead"}},
		{2, []string{"events", "discard", "--state", "dead", "--reason", ""}},
		{2, []string{"events", "retry", "not-a-uuid", "--reason", "x"}},
		{2, []string{"events", "show", "not-a-uuid"}},
		{2, []string{"events", "list", "--state", ""}},
		{2, []string{"events", "list", "--service", ""}},
		{2, []string{"events", "retry", "--state", "dead", "--media", "", "--reason", "x"}},
		{2, []string{"events", "discard", "--service", "S1", "--media", "", "--reason", "x"}},
		{2, []string{"events", "discard", "--service", "S1", "--type", "", "--reason", "x"}},
		{2, []string{"events", "discard", "--service", "S1", "--error-class", "", "--reason", "x"}},
		{2, []string{"events", "discard", "--service", "S1", "--error-code", "", "--reason", "x"}},
		{2, []string{"events", "discard", "--service", "S1", "--state", "", "--reason", "x"}},
		{0, []string{"events", "list", "--environment", ""}},
		{1, []string{"events", "retry", id, "--reason", "x"}},
		{1, []string{"events", "show", id}},
		{2, []string{"integration", "set", "--service", "S1", "--skip-test"}},
		{2, []string{"integration", "show"}},
		{1, []string{"integration", "show", "--service", "S1"}},
		{1, []string{"integration", "set", "--service", "S1", "--bucket", "NOT A BUCKET"}},
		{1, []string{"media", "show", "--service", "S1", "--media", "m"}},
		{1, []string{"environments", "show", "--service", "S1", "--environment", "dev"}},
		{1, []string{"publish", "/does/not/exist"}},
		{2, []string{"publish", "\xff.jsonl"}},
		{2, []string{"integration", "set", "--service", "S1", "--prefix", "a\xffb"}},
		{2, []string{"events", "discard", "--service=S\xff", "--reason", "x"}},
		{2, []string{"worker", "--timeout", "1s"}},
		{2, []string{"worker", "--concurrency", "0", "--until-idle"}},
		{2, []string{"stats", "--database-url", "mysql://x"}},
		{0, []string{"version"}},
		{0, []string{"migrate", "status"}},
		{0, []string{"migrate", "up"}},
		{0, []string{"migrate"}},
	} {
		r := s.run("", c.args...)
		if c.code == 2 && r.code == 1 && strings.Contains(r.stderr, "database URL") {
			continue // found wrong when it was used
		}
		if r.code != c.code || c.code != 0 && r.stderr == "" || c.code != 0 && r.stdout != "" {
			t.Errorf("%v: exit code %d, want %d; stdout %q, stderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	for _, command := range []string{"worker", "dev", "migrate up", "migrate status", "migrate grant-publisher", "publish",
		"events list", "events show", "events retry", "events discard", "media show", "integration set", "integration show",
		"integration list", "integration pause", "integration resume", "integration delete", "environments list",
		"environments show", "environments retry-failed", "stats", "version"} {
		r := s.run("", append(strings.Fields(command), "--help")...)
		if r.code != 0 || !strings.Contains(r.stdout, "Usage: ownbucket "+command) {
			t.Errorf("%s --help: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
		}
	}
}

func TestGeneratedExternalIDIsShownOnce(t *testing.T) {
	t.Parallel()
	s := newShell(t, dbtest.SQLiteURL(t))
	made := s.object("integration", "set", "--service", "S1", "--bucket", bucketName, "--region", region,
		"--role-arn", s.role, "--skip-test", "--reason", "test")
	generated, _ := made["external_id"].(string)
	if len(generated) < 32 {
		t.Fatalf("no external ID was made: %v", made)
	}
	for _, args := range [][]string{{"integration", "show", "--service", "S1"}, {"integration", "list"},
		{"integration", "set", "--service", "S1", "--memo", "x", "--skip-test", "--reason", "test"}} {
		for _, output := range []string{"json", "table"} {
			if r := s.run("", append(args, "--output", output)...); strings.Contains(r.stdout+r.stderr, generated) {
				t.Errorf("%v shows the external ID again", args)
			}
		}
	}
}

func TestDeletedMediaIsShownWithoutWhatIsGone(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		s := newShell(t, url)
		s.setIntegration()
		s.file("source", "content")
		s.publish(upload("m1", "a.txt", "2026-01-02T03:04:05.5Z"), `{"type":"MediaDeleted","service_id":"S1",`+
			`"data":{"media_id":"m1","file_name":"a.txt","version":"2026-01-02T03:04:06.000001Z"}}`)
		s.ok("worker", "--until-idle", "--timeout", "1m")
		want := map[string]any{"media_id": "m1", "version": "2026-01-02T03:04:06.000001Z", "deleted": true}
		if diff := cmp.Diff(want, s.object("media", "show", "--service", "S1", "--media", "m1")); diff != "" {
			t.Error(diff)
		}
		s.ok("integration", "delete", "--service", "S1", "--reason", "test")
		if diff := cmp.Diff(want, s.object("media", "show", "--service", "S1", "--media", "m1")); diff != "" {
			t.Errorf("after the settings went: %s", diff)
		}
	})
}
