package events_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
)

func FuzzParse(f *testing.F) {
	f.Add(events.MediaUploadedType, "", []byte(upload))
	f.Add(events.MediaRenamedType, environment, []byte(rename))
	f.Add(events.MediaDeletedType, "", []byte(remove))
	f.Add(events.EnvironmentCreatedType, environment, []byte(created))
	f.Add(events.EnvironmentDeletedType, environment, []byte(`{}`))
	for _, r := range refusals() {
		f.Add(r.typ, r.environment, []byte(r.data))
	}
	f.Fuzz(func(t *testing.T, typ, environmentID string, data []byte) {
		event, err := events.Parse(typ, service, environmentID, data)
		if err != nil {
			var invalid *events.InvalidError
			if event != nil || !errors.As(err, &invalid) || invalid.Field == "" || invalid.Reason == "" {
				t.Fatalf("%v, %#v", event, err)
			}
			return
		}
		encoded, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		again, err := events.Parse(typ, service, environmentID, encoded)
		if err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		if diff := cmp.Diff(event, again); diff != "" {
			t.Fatal(diff)
		}
		for _, name := range event.FileNames() {
			if err := events.ValidateFileName(name); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzErrorsNeverRepeatTheSource(f *testing.F) {
	for _, prefix := range []string{"", "s3://", "https://", "https://user:pass@host/", "https://h:port", "https://%zz/", "file:/", "\x00"} {
		f.Add(prefix)
	}
	f.Fuzz(func(t *testing.T, prefix string) {
		const secret = "X-Amz-Signature=c0ffee"
		upload := events.MediaUploaded{
			MediaID: "m1", FileName: "a.png", ContentType: "image/png", Source: prefix + secret,
			Version: mustParseVersion(t, "2025-08-12T15:49:22Z"),
		}
		data, err := json.Marshal(upload)
		if err != nil {
			t.Fatal(err)
		}
		_, parseErr := events.Parse(upload.Type(), service, "", data)
		for _, err := range []error{upload.Validate(service, ""), parseErr} {
			if err != nil && strings.Contains(err.Error(), "c0ffee") {
				t.Fatal(err)
			}
		}
	})
}

func FuzzValidateFileName(f *testing.F) {
	for _, name := range []string{"", ".", "..", "a b+%'\".png", "が.png", "か\u3099.png", "a/b", "a\\b", "\x00", "\u009f", "\uffff", "\xff", "🎉"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		want := name != "" && name != "." && name != ".." && len(name) <= 1024 && utf8.ValidString(name) &&
			!strings.ContainsAny(name, "/\\\ufffe\uffff") && !strings.ContainsFunc(name, unicode.IsControl)
		err := events.ValidateFileName(name)
		if (err == nil) != want {
			t.Fatalf("%q: %v", name, err)
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Fatalf("%q would reach a terminal raw", err)
		}
	})
}

func mustParseVersion(t *testing.T, text string) events.Version {
	t.Helper()
	version, err := events.ParseVersion(text)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func TestErrorsRepeatNoSecretOfAMisplacedURL(t *testing.T) {
	t.Parallel()
	const secret = "c0ffee"
	for _, misplaced := range []string{
		"https://user:" + secret + "@h/x", "//" + secret + "@h", "user:" + secret + "@h", "a/b?" + secret, "a/b#" + secret,
		"a/b%3F" + secret, "a/b&#63;" + secret, `a\\u003f` + secret, "sig/=" + secret,
	} {
		line := func(field string) string {
			return strings.Replace(`{"event_id":"01890a5d-ac96-774b-bcce-b302099a8057","type":"MediaUploaded","service_id":"S1","data":{"media_id":"m1",`+
				`"file_name":"a/","content_type":"image/png","source":"file:x","version":"2026-01-02T03:04:05Z"},"metadata":{"k":"v"}}`, field, misplaced+"\\n", 1)
		}
		for _, field := range []string{"01890a5d-ac96-774b-bcce-b302099a8057", "MediaUploaded", "S1", "m1", "a/", "image/png",
			"2026-01-02T03:04:05Z", "service_id", "data"} {
			_, err := events.ParseEnvelope([]byte(line(field)))
			if err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("%s in the place of %s: %v", misplaced, field, err)
			}
		}
	}
}
