package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Parse reads an event as it stands in the outbox. It fails with an
// *[UnknownTypeError] where a newer version may know the type, and else with an
// *[InvalidError].
//
// Unknown fields are ignored, so that publishers may be newer than workers. An
// optional field that is null is absent. Anything that two JSON readers might
// understand differently is refused: a field twice, an unpaired surrogate,
// invalid UTF-8, text behind the object. Field names must match exactly.
func Parse(typ, serviceID, environmentID string, data []byte) (Event, error) {
	if fault := typeFault(typ); fault != "" {
		if typeName.MatchString(typ) {
			return nil, &UnknownTypeError{Type: typ}
		}
		return nil, &InvalidError{Field: "type", Reason: fault}
	}
	payload, err := readObject(data)
	if err != nil {
		return nil, &InvalidError{Type: typ, Field: "data", Reason: err.Error()}
	}
	event := payload.event(typ)
	if payload.fault != "" {
		invalid := &InvalidError{Type: typ, Field: payload.field, Reason: payload.fault}
		if mediaIDFault(event.Media()) == "" {
			invalid.MediaID = event.Media()
		}
		return nil, invalid
	}
	if err := event.Validate(serviceID, environmentID); err != nil {
		return nil, err
	}
	return event, nil
}

// object is a JSON object's fields, and the first of them that couldn't be
// read: its accessors go on with a zero value, so that they can be written
// one below the other.
type object struct {
	fields map[string]json.RawMessage
	check
}

func (o *object) event(typ string) Event {
	switch typ {
	case MediaUploadedType:
		return MediaUploaded{
			MediaID:          o.text("media_id"),
			FileName:         o.text("file_name"),
			PreviousFileName: o.optionalText("previous_file_name"),
			ContentType:      o.text("content_type"),
			Size:             o.optionalInteger("size"),
			ChecksumSHA256:   o.optionalChecksum("checksum_sha256"),
			Source:           o.text("source"),
			Version:          o.version("version"),
		}
	case MediaRenamedType:
		return MediaRenamed{
			MediaID: o.text("media_id"),
			From:    o.text("from"),
			To:      o.text("to"),
			Version: o.version("version"),
		}
	case MediaDeletedType:
		return MediaDeleted{
			MediaID:  o.text("media_id"),
			FileName: o.text("file_name"),
			Version:  o.version("version"),
		}
	case EnvironmentCreatedType:
		return EnvironmentCreated{
			SourceEnvironmentID:  o.text("source_environment_id"),
			EnvironmentServiceID: o.text("environment_service_id"),
		}
	default:
		return EnvironmentDeleted{}
	}
}

func (o *object) has(field string) bool {
	raw, ok := o.fields[field]
	return ok && string(raw) != "null"
}

func (o *object) fail(field, fault string) {
	if o.fault == "" {
		o.check = check{field, fault}
	}
}

func (o *object) text(field string) string {
	if !o.has(field) {
		o.fail(field, "is missing")
	}
	return o.optionalText(field)
}

func (o *object) optionalText(field string) string {
	if !o.has(field) {
		return ""
	}
	var text string
	if err := json.Unmarshal(o.fields[field], &text); err != nil {
		o.fail(field, "must be a string")
	}
	return text
}

// optionalChecksum refuses an empty one: who sends the field means to have
// the bytes verified.
func (o *object) optionalChecksum(field string) string {
	checksum := o.optionalText(field)
	if checksum == "" && o.has(field) {
		o.fail(field, checksumFault(checksum))
	}
	return strings.ToLower(checksum)
}

func (o *object) optionalInteger(field string) *int64 {
	if !o.has(field) {
		return nil
	}
	number, err := strconv.ParseInt(string(o.fields[field]), 10, 64)
	if err != nil {
		o.fail(field, "must be an integer of at most 64 bits")
		return nil
	}
	return &number
}

func (o *object) version(field string) Version {
	text := o.text(field)
	version, err := ParseVersion(text)
	if err != nil {
		o.fail(field, err.Error())
	}
	return version
}

func readObject(data []byte) (*object, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("is not valid UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return nil, fmt.Errorf("is not valid JSON: %w", err)
	}
	if hasUnpairedSurrogate(data) {
		return nil, errors.New(`holds half of a surrogate pair (\ud800 to \udfff)`)
	}

	decoder := json.NewDecoder(bytes.NewReader(data))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("must be a JSON object")
	}
	fields := make(map[string]json.RawMessage)
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, fmt.Errorf("is not valid JSON: %w", err)
		}
		name, _ := token.(string) // a key is nothing else in valid JSON
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("holds the field %s twice", quote(name))
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, fmt.Errorf("is not valid JSON: %w", err)
		}
		fields[name] = value
	}
	return &object{fields: fields}, nil
}

// hasUnpairedSurrogate looks for what encoding/json would silently replace by
// U+FFFD. In valid JSON a backslash stands in a string and begins an escape.
func hasUnpairedSurrogate(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		unit, ok := escapedUnit(data[i:])
		switch {
		case !ok:
			i++
		case unit < 0xD800 || unit > 0xDFFF:
			i += 5
		default:
			low, ok := escapedUnit(data[i+6:])
			if unit > 0xDBFF || !ok || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		}
	}
	return false
}

// escapedUnit reads the UTF-16 code unit of a leading \uXXXX.
func escapedUnit(data []byte) (uint64, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return unit, err == nil
}
