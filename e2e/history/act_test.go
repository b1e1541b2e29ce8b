package history_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ownbucket/ownbucket/events"
)

// The ends that an event may come to.
const (
	done            = "completed done"
	skipped         = "completed skipped"
	superseded      = "completed superseded"
	keyTaken        = "dead key_taken"
	sourceGone      = "dead source_gone"
	namePinned      = "dead file_name_pinned"
	predecessorDead = "dead predecessor_dead"
	discarded       = "discarded"
)

// act is an event that the CMS publishes.
type act struct {
	// n counts the events of a history. It rises in the publish order of all
	// events that have something in common.
	n    int64
	id   string
	kind string
	// service and environment are where it happens; production's name is empty.
	service, environment string
	// source is the environment that a new one is made from.
	source string

	media   string
	name    string // after an upload or rename; of a deleted media
	from    string // before a rename or, where that is told, a re-upload
	version events.Version
	content string
	file    string // below the file root
	// missing uploads have a file that isn't there yet.
	missing bool
	// vague uploads tell neither the size nor the checksum of their bytes.
	vague bool

	// ends are the ways in which it may end. The lock of its shelf guards them.
	ends []string
}

func (a *act) contentType() string { return fmt.Sprintf("text/x-%d", a.n) }

// serviceID is the service ID of an environment.
func serviceID(service, environment string) string {
	if environment == "" {
		return service
	}
	return service + "-" + environment
}

// mayEnd adds a way in which the event may end.
func (a *act) mayEnd(how string) {
	if !slices.Contains(a.ends, how) {
		a.ends = append(a.ends, how)
	}
}

// event is what the CMS says of it.
func (a *act) event() events.Event {
	switch a.kind {
	case events.MediaUploadedType:
		upload := events.MediaUploaded{MediaID: a.media, FileName: a.name, PreviousFileName: a.from,
			ContentType: a.contentType(), Source: "file:" + a.file, Version: a.version}
		if !a.vague {
			sum, size := sha256.Sum256([]byte(a.content)), int64(len(a.content))
			upload.Size, upload.ChecksumSHA256 = &size, hex.EncodeToString(sum[:])
		}
		return upload
	case events.MediaRenamedType:
		return events.MediaRenamed{MediaID: a.media, From: a.from, To: a.name, Version: a.version}
	case events.MediaDeletedType:
		return events.MediaDeleted{MediaID: a.media, FileName: a.name, Version: a.version}
	case events.EnvironmentCreatedType:
		return events.EnvironmentCreated{SourceEnvironmentID: a.source,
			EnvironmentServiceID: serviceID(a.service, a.environment)}
	default:
		return events.EnvironmentDeleted{}
	}
}

// row has the values of the event's row in the outbox.
func (a *act) row() ([]any, error) {
	data, err := json.Marshal(a.event())
	return []any{a.id, a.kind, a.service, a.environment, string(data)}, err
}

// String is the event without its service.
func (a *act) String() string {
	text := fmt.Sprintf("%s in %q", a.kind, a.environment)
	switch a.kind {
	case events.EnvironmentCreatedType:
		return text + fmt.Sprintf(" from %q", a.source)
	case events.EnvironmentDeletedType:
		return text
	case events.MediaUploadedType:
		text += fmt.Sprintf(" of %d bytes", len(a.content))
	}
	return text + fmt.Sprintf(": %s %q (before: %q), version %s", a.media, a.name, a.from, a.version)
}
