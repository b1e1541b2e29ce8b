package events_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
)

const (
	service     = "SERVICE#0191d3c0-4e5f-7000-8000-000000000001"
	environment = "dev"
)

func TestParseReadsEveryEventAsPublished(t *testing.T) {
	t.Parallel()
	version := events.NewVersion(time.Date(2025, 8, 12, 15, 49, 22, 123456000, time.UTC))
	size := int64(42)
	tests := []struct {
		name, typ, environment, data string
		want                         events.Event
	}{
		{
			"upload", events.MediaUploadedType, "",
			`{"media_id":"m1","file_name":"が 🎉+%\".png","previous_file_name":"old.png","content_type":"image/png",
			  "size":42,"checksum_sha256":"` + strings.Repeat("AB", 32) + `","source":"s3://staging/a b","version":"2025-08-12T15:49:22.123456789Z"}`,
			events.MediaUploaded{
				MediaID: "m1", FileName: `が 🎉+%".png`, PreviousFileName: "old.png", ContentType: "image/png",
				Size: &size, ChecksumSHA256: strings.Repeat("ab", 32), Source: "s3://staging/a b", Version: version,
			},
		},
		{
			"upload with nulls, unknown fields and a zone", events.MediaUploadedType, environment,
			`{"media_id":"m1","file_name":"a","previous_file_name":null,"content_type":"a/b","size":null,"checksum_sha256":null,
			  "source":"https://example.com/?X-Amz-Signature=1","version":"2025-08-13t00:49:22.123456+09:00","Media_ID":7,"tags":[{"a":1}]}`,
			events.MediaUploaded{
				MediaID: "m1", FileName: "a", ContentType: "a/b",
				Source: "https://example.com/?X-Amz-Signature=1", Version: version,
			},
		},
		{
			"rename", events.MediaRenamedType, "",
			`{"media_id":"m1","from":"a.png","to":"b.png","version":"2025-08-12T15:49:22.123456Z"}`,
			events.MediaRenamed{MediaID: "m1", From: "a.png", To: "b.png", Version: version},
		},
		{
			"delete", events.MediaDeletedType, "",
			`{"media_id":"\ud83c\udf89","file_name":"a.png","version":"2025-08-12T15:49:22.123456Z"}`,
			events.MediaDeleted{MediaID: "🎉", FileName: "a.png", Version: version},
		},
		{
			"copy of production", events.EnvironmentCreatedType, environment,
			`{"source_environment_id":"","environment_service_id":"SERVICE#2"}`,
			events.EnvironmentCreated{EnvironmentServiceID: "SERVICE#2"},
		},
		{"environment deleted", events.EnvironmentDeletedType, environment, " {} ", events.EnvironmentDeleted{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := events.Parse(test.typ, service, test.environment, []byte(test.data))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatIsValidSurvivesJSON(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := anyPublished().Draw(t, "published")
		if err := p.Event.Validate(p.ServiceID, p.EnvironmentID); err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(p.Event)
		if err != nil {
			t.Fatal(err)
		}
		got, err := events.Parse(p.Event.Type(), p.ServiceID, p.EnvironmentID, data)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(p.Event, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestFileNamesAreThoseOfThePayloadOnce(t *testing.T) {
	t.Parallel()
	tests := []struct {
		event events.Event
		want  []string
	}{
		{events.MediaUploaded{FileName: "a"}, []string{"a"}},
		{events.MediaUploaded{FileName: "a", PreviousFileName: "a"}, []string{"a"}},
		{events.MediaUploaded{FileName: "a", PreviousFileName: "b"}, []string{"a", "b"}},
		{events.MediaRenamed{From: "a", To: "b"}, []string{"a", "b"}},
		{events.MediaDeleted{FileName: "a"}, []string{"a"}},
		{events.EnvironmentCreated{}, nil},
		{events.EnvironmentDeleted{}, nil},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, test.event.FileNames()); diff != "" {
			t.Errorf("%+v: %s", test.event, diff)
		}
	}
}

func TestInvalidEventSaysWhoseMediaItIs(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`{"media_id":"m1","from":"a","to":"b/c","version":"2025-08-12T15:49:22Z"}`,
		`{"to":7,"media_id":"m1"}`,
	} {
		_, err := events.Parse(events.MediaRenamedType, service, "", []byte(data))
		var invalid *events.InvalidError
		if !errors.As(err, &invalid) || invalid.MediaID != "m1" || invalid.Code() != events.CodeInvalid {
			t.Errorf("%s: %#v", data, err)
		}
	}
}

func TestErrorsRepeatAtMost64CharactersOfAValue(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("長", 2000)
	_, err := events.Parse(events.MediaDeletedType, service, "",
		[]byte(`{"media_id":"m1","file_name":"`+long+`","version":"2025-08-12T15:49:22Z"}`))
	if err == nil || strings.Count(err.Error(), "長") != 64 {
		t.Error(err)
	}
}

func TestVersionsAreMicroseconds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text   string
		micros int64
	}{
		{"1970-01-01T00:00:00Z", 0},
		{"1969-12-31T23:59:59.0000019-09:00", 32_399_000_001},
		{"2025-08-12T15:49:22.123456999Z", 1755013762123456},
		{"2025-08-12t15:49:22.1z", 1755013762100000},
		{"2025-08-13T00:49:22.1234+09:00", 1755013762123400},
		{"9999-12-31T23:59:59.99999999999999Z", 253402300799999999},
	}
	for _, test := range tests {
		version, err := events.ParseVersion(test.text)
		if err != nil || version.Micros() != test.micros {
			t.Errorf("%s: %d, %v; want %d", test.text, version.Micros(), err, test.micros)
		}
	}
	older, newer := events.NewVersion(time.UnixMicro(1)), events.NewVersion(time.UnixMicro(2))
	if older.Compare(newer) >= 0 || older == newer || newer != events.NewVersion(time.Unix(0, 2999)) {
		t.Error("versions don't compare by microseconds")
	}
	if _, err := json.Marshal(events.Version{}); err == nil {
		t.Error("no version was written as one")
	}
}
