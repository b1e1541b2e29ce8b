package events_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
)

var fixedTime = time.Date(2025, 8, 12, 15, 49, 22, 0, time.UTC)

func TestParseEnvelopeReadsALine(t *testing.T) {
	t.Parallel()
	schema := envelopeSchema(t)
	tests := []struct {
		line string
		want events.Envelope
	}{
		{
			`{"event_id":"` + firstID + `","type":"MediaRenamed","service_id":"S","environment_id":"dev","data":` + rename + `,"metadata":{"a":"b"}}`,
			events.Envelope{
				EventID: firstID, ServiceID: "S", EnvironmentID: "dev", Metadata: map[string]string{"a": "b"},
				Event: events.MediaRenamed{MediaID: "m1", From: "a.png", To: "b.png", Version: events.NewVersion(fixedTime)},
			},
		},
		{
			`{"event_id":null,"type":"EnvironmentDeleted","service_id":"S","environment_id":"dev","data":{"x":1},"metadata":null}`,
			events.Envelope{ServiceID: "S", EnvironmentID: "dev", Event: events.EnvironmentDeleted{}},
		},
		{
			`{"type":"MediaRenamed","service_id":"S","data":` + rename + `}`,
			events.Envelope{
				ServiceID: "S",
				Event:     events.MediaRenamed{MediaID: "m1", From: "a.png", To: "b.png", Version: events.NewVersion(fixedTime)},
			},
		},
	}
	for _, test := range tests {
		got, err := events.ParseEnvelope([]byte(test.line))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Error(diff)
		}
		if err := schemaError(t, schema, test.line); err != nil {
			t.Error(err)
		}
	}
}

func TestParseEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	schema := envelopeSchema(t)
	line := `{"event_id":"` + firstID + `","type":"MediaRenamed","service_id":"S","environment_id":"dev","metadata":{"a":"b"},"data":` + rename + `}`
	tests := []struct{ piece, replacement, field, reason string }{
		{line, `[]`, "envelope", "must be a JSON object"},
		{line, `{`, "envelope", "is not valid JSON"},
		{`"environment_id"`, `"enviroment_id"`, "envelope", `unknown field "enviroment_id"`},
		{firstID, "7", "event_id", "is not a UUID"},
		{firstID, strings.ReplaceAll(firstID, "-", ""), "event_id", "is not a UUID"},
		{`"MediaRenamed"`, `"MediaMoved"`, "type", "is not one of"},
		{`"MediaRenamed"`, `null`, "type", "is missing"},
		{`"S"`, `7`, "service_id", "must be a string"},
		{`"S"`, `""`, "service_id", "must not be empty"},
		{`"dev"`, `" dev"`, "environment_id", "must not begin or end with a space"},
		{`{"a":"b"}`, `{"a":1}`, "metadata", `under the key "a" must be a string`},
		{`{"a":"b"}`, `{"a":null}`, "metadata", `under the key "a" is missing`},
		{`{"a":"b"}`, `["a"]`, "metadata", "must be a JSON object"},
		{`{"a":"b"}`, `{"ownbucket-type":"a"}`, "metadata", "must not use keys"},
		{rename, `null`, "data", "is missing"},
		{rename, `"{}"`, "data", "must be a JSON object"},
		{`"m1"`, `""`, "media_id", "must not be empty"},
	}
	for _, test := range tests {
		bad := with(line, test.piece, test.replacement)
		got, err := events.ParseEnvelope([]byte(bad))
		var invalid *events.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != test.field || !strings.Contains(invalid.Reason, test.reason) {
			t.Errorf("%s: %+v, %v", bad, got, err)
		}
		if schemaError(t, schema, bad) == nil {
			t.Errorf("the schema accepts %s", bad)
		}
	}
}
