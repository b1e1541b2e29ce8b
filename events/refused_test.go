package events_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/events"
)

const (
	upload = `{"media_id":"m1","file_name":"a.png","previous_file_name":"b.png","content_type":"image/png","size":42,` +
		`"checksum_sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",` +
		`"source":"s3://staging/key","version":"2025-08-12T15:49:22Z"}`
	rename  = `{"media_id":"m1","from":"a.png","to":"b.png","version":"2025-08-12T15:49:22Z"}`
	remove  = `{"media_id":"m1","file_name":"a.png","version":"2025-08-12T15:49:22Z"}`
	created = `{"source_environment_id":"","environment_service_id":"SERVICE#2"}`
)

// refusal is a valid envelope with one fault.
type refusal struct {
	name, typ, service, environment, data string
	field, reason                         string
	// onlyByParse: a JSON Schema can't express the rule.
	onlyByParse bool
}

// with replaces one piece of a valid payload.
func with(valid, piece, replacement string) string {
	if !strings.Contains(valid, piece) {
		panic("no " + piece + " in " + valid)
	}
	return strings.Replace(valid, piece, replacement, 1)
}

func refusals() []refusal {
	var all []refusal
	add := func(field, reason, typ, environment string, payloads ...string) {
		for _, data := range payloads {
			all = append(all, refusal{
				name: typ + "/" + field, typ: typ, service: service, environment: environment,
				data: data, field: field, reason: reason,
			})
		}
	}
	onlyByParse := func(field, reason, typ, environment string, payloads ...string) {
		before := len(all)
		add(field, reason, typ, environment, payloads...)
		for i := range all[before:] {
			all[before+i].onlyByParse = true
		}
	}
	uploaded := func(field, reason, piece string, replacements ...string) {
		for _, replacement := range replacements {
			add(field, reason, events.MediaUploadedType, "", with(upload, piece, replacement))
		}
	}
	uploadedOnlyByParse := func(field, reason, piece string, replacements ...string) {
		for _, replacement := range replacements {
			onlyByParse(field, reason, events.MediaUploadedType, "", with(upload, piece, replacement))
		}
	}

	add("type", "is not one of", "", "", rename)
	add("type", "is not one of", "Media moved", "", rename)
	add("type", "is not one of", strings.Repeat("M", 65), "", rename)
	add("type", "is not one of", "mediarenamed", "", rename)
	add("data", "must be a JSON object", events.EnvironmentDeletedType, environment, `null`, `[]`, `"{}"`, `7`)
	onlyByParse("data", "is not valid JSON", events.EnvironmentDeletedType, environment, ``, `{`, `{} {}`, `{}x`, `{"a":01}`, "\ufeff{}")
	onlyByParse("data", "is not valid UTF-8", events.MediaRenamedType, "", with(rename, "b.png", "b\xff.png"))
	onlyByParse("data", "half of a surrogate pair", events.MediaRenamedType, "",
		with(rename, "b.png", `\ud800`), with(rename, "b.png", `\uDC00`), with(rename, "b.png", `\udc00\udc00`), with(rename, "b.png", `\ud83c\u0041`),
		with(rename, "b.png", `\ud83c\\udf89`), with(rename, "b.png", `\\\ud83c`),
		with(rename, `"to"`, `"unknown":["\ud83c"],"to"`), with(rename, `"to"`, `"\udf89":1,"to"`))
	onlyByParse("data", `holds the field "to" twice`, events.MediaRenamedType, "",
		with(rename, `"to"`, `"to":"c.png","to"`), with(rename, `"to"`, `"t\u006f":"b.png","to"`))

	uploaded("media_id", "is missing", `"media_id"`, `"Media_ID"`, `"media_id":null,"x"`)
	uploaded("media_id", "must be a string", `"m1"`, `7`, `["m1"]`, `{}`, `true`)
	uploaded("media_id", "must not be empty", `"m1"`, `""`)
	uploaded("media_id", "control character", `"m1"`, `"m\u0000"`, `"m\n"`, `"m\u007f"`, `"\u0085"`)
	uploaded("media_id", "is 513 bytes long, of at most 512", `m1`, strings.Repeat("m", 513))
	uploadedOnlyByParse("media_id", "is 600 bytes long, of at most 512", `m1`, strings.Repeat("長", 200))

	for _, name := range []struct{ json, reason string }{
		{`/`, `must not contain '/'`}, {`a/b`, `must not contain '/'`}, {`../a`, `must not contain '/'`},
		{`a\\b`, `must not contain '\\'`}, {`.`, `must not be "."`}, {`..`, `must not be ".."`},
		{`a\u0000`, "U+0000"}, {`a\t`, "U+0009"}, {`a\u001f`, "U+001F"}, {`\u007f`, "U+007F"}, {`\u009f`, "U+009F"},
		{`a\ufffe`, "U+FFFE"}, {"\uffff", "U+FFFF"},
		{strings.Repeat("a", 1025), "is 1025 bytes long, of at most 1024"},
	} {
		uploaded("file_name", name.reason, `"a.png"`, `"`+name.json+`"`)
		uploaded("previous_file_name", name.reason, `"b.png"`, `"`+name.json+`"`)
		add("from", name.reason, events.MediaRenamedType, "", with(rename, `"a.png"`, `"`+name.json+`"`))
		add("to", name.reason, events.MediaRenamedType, "", with(rename, `"b.png"`, `"`+name.json+`"`))
		add("file_name", name.reason, events.MediaDeletedType, "", with(remove, `"a.png"`, `"`+name.json+`"`))
	}
	uploaded("file_name", "must not be empty", `"a.png"`, `""`)
	uploaded("file_name", "is missing", `"file_name"`, `"fileName"`)
	uploaded("previous_file_name", "must be a string", `"b.png"`, `["b.png"]`)

	uploaded("content_type", "is missing", `"content_type"`, `"contentType"`)
	uploaded("content_type", "must not be empty", `"image/png"`, `""`)
	uploaded("content_type", "must be printable ASCII", `image/png`, `a\r\nx-amz-acl: b`, `a\u0000b`, `画像`, `a\u007fb`)
	uploaded("content_type", "must not begin or end with a space", `image/png`, ` a`, `a `, `a\n`, ` `)
	uploaded("content_type", "is 257 bytes long", `image/png`, strings.Repeat("a", 257))

	uploaded("size", "must be an integer", `42`, `"42"`, `1.5`, `true`, `9223372036854775808`)
	uploadedOnlyByParse("size", "must be an integer", `42`, `42.0`, `1e3`)
	uploaded("size", "must not be negative", `42`, `-1`)

	digest := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	uploaded("checksum_sha256", "must be 64 hex digits", digest, "", digest[1:], digest+"0", digest[1:]+"g",
		"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")

	uploaded("source", "is missing", `"source"`, `"Source"`)
	uploaded("source", "must not be empty", `s3://staging/key`, ``)
	uploaded("source", "must begin with", `s3://staging/key`, `http://example.com/a`, `S3://b/k`, `/etc/passwd`, `ftp://h/a`, `data:,a`)
	uploaded("source", "must name a bucket and a key", `s3://staging/key`, `s3://`, `s3://staging`, `s3://staging/`, `s3:///key`)
	uploaded("source", "with a host", `s3://staging/key`, `https://`, `https:///a`, `https://:443/a`)
	uploadedOnlyByParse("source", "is not a valid https URL", `s3://staging/key`, `https://h:port/`, `https://h/%zz`, `https://h h/`)
	uploaded("source", "must not hold a user name", `s3://staging/key`, `https://u:p@h/`, `https://u@h/`)
	uploaded("source", "must be a path relative to", `s3://staging/key`, `file:`, `file:/etc/passwd`, `file:///etc/passwd`)
	uploaded("source", "control characters", `s3://staging/key`, `s3://b/\u0000`, `https://h/\n`, `file:a\u0085`)
	uploaded("source", "is 16385 bytes long", `s3://staging/key`, `file:`+strings.Repeat("a", 16380))

	uploaded("version", "is missing", `"version"`, `"Version"`)
	uploaded("version", "must be a string", `"2025-08-12T15:49:22Z"`, `1755013762`)
	uploaded("version", "is not an RFC 3339 time", `2025-08-12T15:49:22Z`, ``, `2025-08-12`, `20250812154922`,
		`2025-08-12 15:49:22Z`, `2025-08-12T15:49:22`, `2025-08-12T15:49:22,5Z`, `2025-08-12T5:49:22Z`,
		`2025-02-29T15:49:22Z`, `2025-08-12T24:00:00Z`, `2025-08-12T15:49:22+25:00`, `2025-08-12T15:49:60Z`, `+12025-08-12T15:49:22Z`)
	uploadedOnlyByParse("version", "is not between the years 1970 and 9999", `2025-08-12T15:49:22Z`,
		`1969-12-31T23:59:59Z`, `1970-01-01T00:00:00+09:00`, `9999-12-31T23:59:59-01:00`, `0000-01-01T00:00:00Z`)

	add("environment_id", "must not be empty: production", events.EnvironmentDeletedType, "", `{}`)
	add("environment_id", "must not be empty: production", events.EnvironmentCreatedType, "",
		with(created, `"source_environment_id":""`, `"source_environment_id":"stg"`))
	add("source_environment_id", "is missing", events.EnvironmentCreatedType, environment, `{"environment_service_id":"S"}`,
		`{"source_environment_id":null,"environment_service_id":"S"}`)
	onlyByParse("source_environment_id", "is the environment itself", events.EnvironmentCreatedType, environment,
		with(created, `"source_environment_id":""`, `"source_environment_id":"`+environment+`"`))
	add("source_environment_id", "must be printable ASCII", events.EnvironmentCreatedType, environment,
		with(created, `"source_environment_id":""`, `"source_environment_id":"開発"`))
	add("environment_service_id", "must not be empty", events.EnvironmentCreatedType, environment, with(created, "SERVICE#2", ""))
	add("environment_service_id", "must be printable ASCII", events.EnvironmentCreatedType, environment,
		with(created, "SERVICE#2", `S\r\nx-amz-acl:b`))
	add("environment_service_id", "is missing", events.EnvironmentCreatedType, environment, `{"source_environment_id":""}`)

	for bad, reason := range map[string]string{
		"a\nb": "must be printable ASCII", " S": "must not begin or end with a space", "S\t": "must not begin or end with a space",
		"サービス": "must be printable ASCII", strings.Repeat("s", 257): "is 257 bytes long, of at most 256",
	} {
		all = append(all,
			refusal{name: "service_id", typ: events.MediaRenamedType, service: bad, data: rename, field: "service_id", reason: reason},
			refusal{
				name: "environment_id", typ: events.MediaRenamedType, service: service, environment: bad, data: rename,
				field: "environment_id", reason: reason,
			})
	}
	return append(all, refusal{
		name: "service_id", typ: events.MediaRenamedType, data: rename, field: "service_id", reason: "must not be empty",
	})
}

func TestParseTellsATypeThatANewerPublisherMayHave(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"MediaMoved", "M", "Media2Moved", strings.Repeat("M", 64)} {
		_, err := events.Parse(typ, service, "", []byte(rename))
		var unknown *events.UnknownTypeError
		if !errors.As(err, &unknown) || unknown.Type != typ || !strings.Contains(err.Error(), typ) {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

func TestParseAndSchemaRefuse(t *testing.T) {
	t.Parallel()
	schema := envelopeSchema(t)
	for _, valid := range []struct{ typ, environment, data string }{
		{events.MediaUploadedType, "", upload},
		{events.MediaRenamedType, "", rename},
		{events.MediaDeletedType, "", remove},
		{events.EnvironmentCreatedType, environment, created},
	} {
		if _, err := events.Parse(valid.typ, service, valid.environment, []byte(valid.data)); err != nil {
			t.Errorf("what the refusals start from: %v", err)
		}
		if err := schemaError(t, schema, envelopeLine(valid.typ, service, valid.environment, valid.data)); err != nil {
			t.Errorf("what the refusals start from: %v", err)
		}
	}
	for _, test := range refusals() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := events.Parse(test.typ, test.service, test.environment, []byte(test.data))
			var invalid *events.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("%s: accepted as %+v, %v", test.data, got, err)
			}
			if invalid.Field != test.field || !strings.Contains(invalid.Reason, test.reason) {
				t.Errorf("%s: %q %q, want %q %q", test.data, invalid.Field, invalid.Reason, test.field, test.reason)
			}
			if !strings.Contains(err.Error(), test.field+" ") {
				t.Errorf("%q doesn't name %s", err, test.field)
			}
			if test.onlyByParse {
				return
			}
			if schemaError(t, schema, envelopeLine(test.typ, test.service, test.environment, test.data)) == nil {
				t.Errorf("the schema accepts %s", test.data)
			}
		})
	}
}
