package handlers_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// insert is what a publisher in another language does.
func insert(p *stage.Place, eventType, data string) string {
	p.T.Helper()
	id := uuid.NewString()
	if _, err := p.DB.ExecContext(p.T.Context(), p.DB.SQL(`
		INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (event_id) DO NOTHING`), id, eventType, p.Service, p.Environment, data); err != nil {
		p.T.Fatalf("publish %s %.80s: %v", eventType, data, err)
	}
	return id
}

func marshal(t *testing.T, value any) string {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const validUpload = `{"media_id": "m9", "file_name": "x.txt", "content_type": "text/plain", "source": "file:x", "version": "2026-01-02T03:04:05Z"}`

func with(field, value string) string {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(validUpload), &fields); err != nil {
		panic(err)
	}
	parts := []string{fmt.Sprintf("%q: %s", field, value)}
	for name, raw := range fields {
		if name != field {
			parts = append(parts, fmt.Sprintf("%q: %s", name, raw))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// Whatever a publisher writes, its transaction commits, the event is dead with
// its reason, and those before and after it run.
func TestAMalformedEventIsDeadWithItsReason(t *testing.T) {
	malformed := []struct{ name, eventType, data string }{
		{"empty type", "", validUpload},
		{"type in another case", "mediauploaded", validUpload},
		{"huge type", strings.Repeat("T", 100_000), validUpload},
		{"null", "MediaUploaded", `null`},
		{"a number", "MediaUploaded", `1e999`},
		{"a string", "MediaUploaded", `"MediaUploaded"`},
		{"an array", "MediaUploaded", `[` + validUpload + `]`},
		{"nothing in it", "MediaUploaded", `{}`},
		{"another type's payload", "MediaRenamed", validUpload},
		{"a field twice", "MediaUploaded", validUpload[:len(validUpload)-1] + `, "media_id": "other"}`},
		{"a lone surrogate", "MediaUploaded", with("file_name", `"\ud83d.txt"`)},
		{"a lone low surrogate", "MediaUploaded", with("media_id", `"\ude00"`)},
		{"a lone surrogate in a key", "MediaUploaded", validUpload[:len(validUpload)-1] + `, "\ud83d": 1}`},
		{"NUL in the name", "MediaUploaded", with("file_name", `"a\u0000b"`)},
		{"NUL in the media", "MediaUploaded", with("media_id", `"\u0000"`)},
		{"an empty media", "MediaUploaded", with("media_id", `""`)},
		{"a number as media", "MediaUploaded", with("media_id", `7`)},
		{"a negative size", "MediaUploaded", with("size", `-1`)},
		{"a fraction as size", "MediaUploaded", with("size", `1.5`)},
		{"a size beyond 64 bits", "MediaUploaded", with("size", `99999999999999999999`)},
		{"half a checksum", "MediaUploaded", with("checksum_sha256", `"abcd"`)},
		{"an empty checksum", "MediaUploaded", with("checksum_sha256", `""`)},
		{"a content type with a line break", "MediaUploaded", with("content_type", `"text/plain\r\nx-amz-acl: public-read"`)},
		{"a source of another kind", "MediaUploaded", with("source", `"http://example.com/x"`)},
		{"no version", "MediaUploaded", with("version", `null`)},
		{"a version without a zone", "MediaUploaded", with("version", `"2026-01-02T03:04:05"`)},
		{"a version as a number", "MediaUploaded", with("version", `20260102030405`)},
		{"huge JSON", "MediaUploaded", with("file_name", `"`+strings.Repeat("x", 4<<20)+`"`)},
		{"deep JSON", "MediaUploaded", with("size", strings.Repeat("[", 900)+strings.Repeat("]", 900))},
		{"creation of production", "EnvironmentCreated", `{"source_environment_id": "dev", "environment_service_id": "S"}`},
		{"deletion of production", "EnvironmentDeleted", `{}`},
	}
	each(t, func(t *testing.T, p *stage.Place) {
		before := p.Publish(p.Upload("m1", "a.txt", "one"))
		ids := make([]string, len(malformed))
		for i, tc := range malformed {
			ids[i] = insert(p, tc.eventType, tc.data)
		}
		after := p.Publish(p.Rename("m1", "a.txt", "b.txt"))
		p.Work()
		wantStates(t, p, []string{before, after}, "completed done", "completed done")
		for i, tc := range malformed {
			e := p.Event(ids[i])
			if e.String() != "dead invalid_event" || *e.ErrorClass != "permanent" || *e.Error == "" {
				t.Errorf("%s: %s", tc.name, e)
			}
		}
		wantContents(t, p, contents{"media/b.txt": "one"})
	})
}

// A dead event still is its media's, where that much could be read.
func TestAMalformedEventOfAMediaIsKnownAsThatMedias(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		ids := []string{insert(p, "MediaUploaded", with("size", `-1`))}
		ids = append(ids, run(p, p.Rename("m9", "x.txt", "y.txt"))...)
		wantStates(t, p, ids, "dead invalid_event", "dead predecessor_dead")
	})
}

func TestIdentityColumnsThatNoEnvironmentHasAreInvalid(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		for _, identity := range []struct{ service, environment string }{
			{"", ""}, {"日本", ""}, {" x", ""}, {strings.Repeat("s", 10_000), ""}, {"S", "dev\n"}, {"S", strings.Repeat("e", 10_000)},
		} {
			odd := &stage.Place{Stage: p.Stage, Service: identity.service, Environment: identity.environment}
			id := insert(odd, "MediaUploaded", validUpload)
			p.Work()
			wantStates(t, odd, []string{id}, "dead invalid_event")
		}
	})
}

// What SQLite stores of invalid UTF-8 PostgreSQL refuses at once; there the
// publisher knows, since no text column could hold it.
func TestInvalidUTF8IsDead(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		if p.DB.Dialect != database.SQLite {
			t.Skip("PostgreSQL's text holds valid UTF-8 only")
		}
		id := insert(p, "MediaUploaded", with("file_name", "\"a\xff\""))
		p.Work()
		wantStates(t, p, []string{id}, "dead invalid_event")
	})
}

func TestATransactionWithAMalformedEventCommits(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		tx, err := p.DB.BeginTxx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.NewString()
		for _, data := range []string{with("media_id", `"\u0000"`), `{}`} { // the second repeats the event's ID
			if _, err := tx.ExecContext(t.Context(), p.DB.SQL(`
				INSERT INTO {outbox} (event_id, type, service_id, environment_id, data) VALUES (?, 'MediaUploaded', ?, '', ?)
				ON CONFLICT (event_id) DO NOTHING`), id, p.Service, data); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		p.Work()
		wantStates(t, p, []string{id}, "dead invalid_event")
	})
}
