package events

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Envelope is an event on its way into the outbox.
type Envelope struct {
	// EventID is a UUID; publishing it again is harmless for as long as the
	// event is kept. One of version 7 is made where it is empty.
	EventID   string
	ServiceID string
	// EnvironmentID is empty for production.
	EnvironmentID string
	Event         Event
	// Metadata travels with the event, beside the publisher's trace context.
	Metadata map[string]string
}

// metadataReserved begins the metadata keys that carry the outbox's other
// columns through Watermill's message.
const metadataReserved = "ownbucket-"

// Validate holds the envelope and its event against the rules of the contract.
// What it returns is an *[InvalidError].
func (e Envelope) Validate() error {
	if e.Event == nil {
		return &InvalidError{Field: "type", Reason: "is missing: the envelope holds no event"}
	}
	typ := e.Event.Type()
	if fault := typeFault(typ); fault != "" {
		return &InvalidError{Field: "type", Reason: fault}
	}
	if fault := unlessEmpty(e.EventID, eventIDFault); fault != "" {
		return &InvalidError{Type: typ, Field: "event_id", Reason: fault}
	}
	if fault := metadataFault(e.Metadata); fault != "" {
		return &InvalidError{Type: typ, Field: "metadata", Reason: fault}
	}
	return e.Event.Validate(e.ServiceID, e.EnvironmentID)
}

// ParseEnvelope reads an envelope from JSON as described by
// schema/Envelope.json: event_id, type, service_id, environment_id, data and
// metadata. Unlike a payload's, its unknown fields are refused: a misspelt
// environment_id would publish to production.
func ParseEnvelope(line []byte) (Envelope, error) {
	fields, err := readObject(line)
	if err != nil {
		return Envelope{}, &InvalidError{Field: "envelope", Reason: err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(fields.fields)) {
		if !slices.Contains(envelopeFields, name) {
			return Envelope{}, &InvalidError{Field: "envelope", Reason: "holds the unknown field " + quote(name)}
		}
	}
	envelope := Envelope{
		EventID:       fields.optionalText("event_id"),
		ServiceID:     fields.text("service_id"),
		EnvironmentID: fields.optionalText("environment_id"),
		Metadata:      fields.optionalTexts("metadata"),
	}
	typ := fields.text("type")
	if !fields.has("data") {
		fields.fail("data", "is missing")
	}
	if fault := typeFault(typ); fault != "" {
		fields.fail("type", fault)
	}
	if fields.fault != "" {
		return Envelope{}, &InvalidError{Field: fields.field, Reason: fields.fault}
	}
	envelope.Event, err = Parse(typ, envelope.ServiceID, envelope.EnvironmentID, fields.fields["data"])
	if err != nil {
		return Envelope{}, err
	}
	if err := envelope.Validate(); err != nil {
		return Envelope{}, err
	}
	return envelope, nil
}

var envelopeFields = []string{"event_id", "type", "service_id", "environment_id", "data", "metadata"}

func (o *object) optionalTexts(field string) map[string]string {
	if !o.has(field) {
		return nil
	}
	inner, err := readObject(o.fields[field])
	if err != nil {
		o.fail(field, err.Error())
		return nil
	}
	texts := make(map[string]string, len(inner.fields))
	for _, name := range slices.Sorted(maps.Keys(inner.fields)) {
		texts[name] = inner.text(name)
	}
	if inner.fault != "" {
		o.fail(field, fmt.Sprintf("under the key %s %s", quote(inner.field), inner.fault))
	}
	return texts
}

// eventIDFault accepts a UUID's usual form only: what is the same UUID must be
// the same text where the column is one.
func eventIDFault(id string) string {
	if len(id) != len(uuid.UUID{}.String()) || uuid.Validate(id) != nil {
		return fmt.Sprintf("is not a UUID: %s", quote(id))
	}
	return ""
}

func metadataFault(metadata map[string]string) string {
	for key, value := range metadata {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return fmt.Sprintf("is not valid UTF-8 under the key %s", quote(key))
		}
		if strings.HasPrefix(key, metadataReserved) {
			return fmt.Sprintf("must not use keys that begin with %q: %s", metadataReserved, quote(key))
		}
	}
	return ""
}

// identified fills in the event's ID and writes it as databases do, so that
// the same UUID is a duplicate however it was spelt.
func (e Envelope) identified() (Envelope, error) {
	if e.EventID != "" {
		e.EventID = strings.ToLower(e.EventID)
		return e, nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return e, fmt.Errorf("make an event ID: %w", err)
	}
	e.EventID = id.String()
	return e, nil
}
