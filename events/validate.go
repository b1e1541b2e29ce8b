package events

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits in bytes.
const (
	// maxFileName is S3's limit for a whole key, so no longer name can be stored.
	maxFileName = 1024
	maxMediaID  = 512
	// maxHeader keeps service ID and content type well below the 2 KB that S3
	// allows for all of an object's metadata.
	maxHeader = 256
	// maxEcho is how many characters of a refused value an error repeats.
	maxEcho = 64
)

// CodeInvalid is the error code under which an invalid event is dead.
const CodeInvalid = "invalid_event"

// InvalidError says which field of an event breaks the contract, and how. Its
// text never holds the event's source, which may be a signed URL.
type InvalidError struct {
	// Type is the event's type where it is one of the five.
	Type string
	// Field is the JSON name of the field, the name of the outbox's column
	// (type, service_id, environment_id), or data for the payload as a whole.
	Field string
	// Reason continues the sentence that the field's name begins.
	Reason string
	// MediaID is the media that the payload names, where that much could be
	// read of it: the dead event still is that media's.
	MediaID string
}

func (e *InvalidError) Error() string {
	if e.Type == "" {
		return fmt.Sprintf("invalid event: %s %s", e.Field, e.Reason)
	}
	return fmt.Sprintf("invalid %s event: %s %s", e.Type, e.Field, e.Reason)
}

// Code is [CodeInvalid].
func (e *InvalidError) Code() string { return CodeInvalid }

// UnknownTypeError is a type that may be an event's, and isn't known: its publisher is
// newer than this program, or misspelt it.
type UnknownTypeError struct{ Type string }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("events of type %s are unknown to this version: upgrade the worker; or, where no version knows them, discard", e.Type)
}

// typeName is what every type of events looks like.
var typeName = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,63}$`)

// ValidateFileName refuses names that can't be stored under a key byte for
// byte or would leave their directory. Everything else is accepted as it is:
// spaces, +, %, quotes, emoji, Japanese in any normalisation form.
func ValidateFileName(name string) error {
	if fault := fileNameFault(name); fault != "" {
		return &InvalidError{Field: "file_name", Reason: fault}
	}
	return nil
}

// Validate: see [Event].
func (e MediaUploaded) Validate(serviceID, environmentID string) error {
	return firstFault(e, serviceID, environmentID,
		check{"media_id", mediaIDFault(e.MediaID)},
		check{"file_name", fileNameFault(e.FileName)},
		check{"previous_file_name", unlessEmpty(e.PreviousFileName, fileNameFault)},
		check{"content_type", headerFault(e.ContentType)},
		check{"size", sizeFault(e.Size)},
		check{"checksum_sha256", unlessEmpty(e.ChecksumSHA256, checksumFault)},
		check{"source", sourceFault(e.Source)},
		check{"version", e.Version.fault()},
	)
}

// Validate: see [Event]. A rename to the same name is valid.
func (e MediaRenamed) Validate(serviceID, environmentID string) error {
	return firstFault(e, serviceID, environmentID,
		check{"media_id", mediaIDFault(e.MediaID)},
		check{"from", fileNameFault(e.From)},
		check{"to", fileNameFault(e.To)},
		check{"version", e.Version.fault()},
	)
}

// Validate: see [Event].
func (e MediaDeleted) Validate(serviceID, environmentID string) error {
	return firstFault(e, serviceID, environmentID,
		check{"media_id", mediaIDFault(e.MediaID)},
		check{"file_name", fileNameFault(e.FileName)},
		check{"version", e.Version.fault()},
	)
}

// Validate: see [Event].
func (e EnvironmentCreated) Validate(serviceID, environmentID string) error {
	same := ""
	if e.SourceEnvironmentID == environmentID {
		same = "is the environment itself: an environment can't be copied from itself"
	}
	return firstFault(e, serviceID, environmentID,
		check{"environment_id", productionFault(environmentID)},
		check{"source_environment_id", unlessEmpty(e.SourceEnvironmentID, headerFault)},
		check{"source_environment_id", same},
		check{"environment_service_id", headerFault(e.EnvironmentServiceID)},
	)
}

// Validate: see [Event].
func (e EnvironmentDeleted) Validate(serviceID, environmentID string) error {
	return firstFault(e, serviceID, environmentID,
		check{"environment_id", productionFault(environmentID)},
	)
}

// check is a field and what is wrong with it; nothing when fault is empty.
type check struct{ field, fault string }

func firstFault(e Event, serviceID, environmentID string, checks ...check) error {
	checks = append([]check{
		{"service_id", headerFault(serviceID)},
		{"environment_id", unlessEmpty(environmentID, headerFault)},
	}, checks...)
	for _, c := range checks {
		if c.fault == "" {
			continue
		}
		invalid := &InvalidError{Type: e.Type(), Field: c.field, Reason: c.fault}
		if mediaIDFault(e.Media()) == "" {
			invalid.MediaID = e.Media()
		}
		return invalid
	}
	return nil
}

func typeFault(typ string) string {
	if slices.Contains(Types(), typ) {
		return ""
	}
	return fmt.Sprintf("is not one of %s: %s", strings.Join(Types(), ", "), quote(typ))
}

func fileNameFault(name string) string {
	if fault := textFault(name, maxFileName); fault != "" {
		return fault
	}
	if name == "." || name == ".." {
		return fmt.Sprintf("must not be %q", name)
	}
	for _, r := range name {
		switch r {
		case '/', '\\':
			return fmt.Sprintf("must not contain %q: %s", r, quote(name))
		case 0xFFFE, 0xFFFF:
			return fmt.Sprintf("must not contain %U: %s", r, quote(name))
		}
	}
	return ""
}

func mediaIDFault(id string) string { return textFault(id, maxMediaID) }

func textFault(text string, limit int) string {
	switch {
	case text == "":
		return "must not be empty"
	case len(text) > limit:
		return fmt.Sprintf("is %d bytes long, of at most %d: %s", len(text), limit, quote(text))
	case !utf8.ValidString(text):
		return fmt.Sprintf("is not valid UTF-8: %s", quote(text))
	}
	if i := strings.IndexFunc(text, unicode.IsControl); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return fmt.Sprintf("must not contain the control character %U: %s", r, quote(text))
	}
	return ""
}

// headerFault is for what becomes an HTTP header's value.
func headerFault(value string) string {
	switch {
	case value == "":
		return "must not be empty"
	case len(value) > maxHeader:
		return fmt.Sprintf("is %d bytes long, of at most %d: %s", len(value), maxHeader, quote(value))
	case strings.TrimSpace(value) != value:
		return fmt.Sprintf("must not begin or end with a space: %s", quote(value))
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
		return fmt.Sprintf("must be printable ASCII: %s", quote(value))
	default:
		return ""
	}
}

func productionFault(environmentID string) string {
	if environmentID == "" {
		return "must not be empty: production is neither created nor deleted"
	}
	return ""
}

func sizeFault(size *int64) string {
	if size != nil && *size < 0 {
		return fmt.Sprintf("must not be negative: %d", *size)
	}
	return ""
}

func checksumFault(checksum string) string {
	isHex := func(r rune) bool {
		return '0' <= r && r <= '9' || 'a' <= r && r <= 'f' || 'A' <= r && r <= 'F'
	}
	if len(checksum) != 64 || strings.ContainsFunc(checksum, func(r rune) bool { return !isHex(r) }) {
		return fmt.Sprintf("must be 64 hex digits: %s", quote(checksum))
	}
	return ""
}

func unlessEmpty(value string, fault func(string) string) string {
	if value == "" {
		return ""
	}
	return fault(value)
}

// quote makes any value safe to stand in an error, a log and a terminal. A value
// that may be a URL with a secret, misplaced here, is repeated up to where its user
// name, its path or an escaped one may begin. One without a slash is no URL.
func quote(value string) string {
	echo := value
	if strings.ContainsAny(value, secretMarks) && mayHaveSlash(value) {
		echo = value[:strings.IndexAny(value, secretMarks+":/")]
	}
	count := 0
	for i := range echo {
		if count == maxEcho {
			echo = echo[:i]
			break
		}
		count++
	}
	if len(echo) < len(value) {
		return fmt.Sprintf("%q…", echo)
	}
	return fmt.Sprintf("%q", value)
}

func mayHaveSlash(value string) bool {
	return strings.ContainsAny(value, `/\@`) || strings.Contains(strings.ToLower(value), "%2f")
}

// secretMarks are in every URL that holds a user name, a password, a query or a
// fragment, escaped or not.
const secretMarks = `@?#%&=\`
