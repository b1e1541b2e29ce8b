package events_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
)

const schemaBase = "https://github.com/ownbucket/ownbucket/events/schema/"

func envelopeSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	names, err := fs.Glob(events.Schemas, "schema/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := compiler.AddResource(schemaBase+strings.TrimPrefix(name, "schema/"), readSchema(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile(schemaBase + "Envelope.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func readSchema(t *testing.T, name string) any {
	t.Helper()
	data, err := fs.ReadFile(events.Schemas, name)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// envelopeLine is what `ownbucket publish` reads; data is JSON already.
func envelopeLine(typ, serviceID, environmentID, data string) string {
	quoted := func(s string) string {
		encoded, _ := json.Marshal(s) // a string is always JSON
		return string(encoded)
	}
	return `{"type":` + quoted(typ) + `,"service_id":` + quoted(serviceID) +
		`,"environment_id":` + quoted(environmentID) + `,"data":` + data + `}`
}

func schemaError(t *testing.T, schema *jsonschema.Schema, document string) error {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(document))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

func TestSchemasAcceptEveryValidEvent(t *testing.T) {
	t.Parallel()
	schema := envelopeSchema(t)
	rapid.Check(t, func(r *rapid.T) {
		p := anyPublished().Draw(r, "published")
		data, err := json.Marshal(p.Event)
		if err != nil {
			r.Fatal(err)
		}
		if err := schemaError(t, schema, envelopeLine(p.Event.Type(), p.ServiceID, p.EnvironmentID, string(data))); err != nil {
			r.Fatalf("%s: %v", data, err)
		}
	})
}

func TestSchemasHaveTheFieldsOfTheTypes(t *testing.T) {
	t.Parallel()
	for _, event := range []events.Event{
		events.MediaUploaded{}, events.MediaRenamed{}, events.MediaDeleted{},
		events.EnvironmentCreated{}, events.EnvironmentDeleted{},
	} {
		schema, ok := readSchema(t, "schema/"+event.Type()+".json").(map[string]any)
		if !ok || schema["title"] != event.Type() || schema["$id"] != schemaBase+event.Type()+".json" {
			t.Fatalf("%s: schema is titled %v, %v", event.Type(), schema["title"], schema["$id"])
		}
		var fields, required []string
		for field := range reflect.TypeOf(event).Fields() {
			name, option, _ := strings.Cut(field.Tag.Get("json"), ",")
			fields = append(fields, name)
			if option != "omitempty" {
				required = append(required, name)
			}
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(fields)), sortedKeys(schema["properties"])); diff != "" {
			t.Errorf("%s: fields: %s", event.Type(), diff)
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(required)), sortedTexts(schema["required"])); diff != "" {
			t.Errorf("%s: required fields: %s", event.Type(), diff)
		}
	}
}

func TestThereIsASchemaOfEachTypeAndOfTheEnvelope(t *testing.T) {
	t.Parallel()
	got, err := fs.Glob(events.Schemas, "schema/*")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"schema/Envelope.json"}
	for _, typ := range events.Types() {
		want = append(want, "schema/"+typ+".json")
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func sortedKeys(object any) []string {
	properties, _ := object.(map[string]any)
	return slices.Sorted(maps.Keys(properties))
}

func sortedTexts(array any) []string {
	var texts []string
	elements, _ := array.([]any)
	for _, element := range elements {
		text, _ := element.(string)
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return texts
}
