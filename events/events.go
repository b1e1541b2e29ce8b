package events

// The names of the five events, as they stand in the outbox's column type.
const (
	MediaUploadedType      = "MediaUploaded"
	MediaRenamedType       = "MediaRenamed"
	MediaDeletedType       = "MediaDeleted"
	EnvironmentCreatedType = "EnvironmentCreated"
	EnvironmentDeletedType = "EnvironmentDeleted"
)

// Types lists the names of the five events.
func Types() []string {
	return []string{
		MediaUploadedType, MediaRenamedType, MediaDeletedType,
		EnvironmentCreatedType, EnvironmentDeletedType,
	}
}

// Event is one of the five events: [MediaUploaded], [MediaRenamed],
// [MediaDeleted], [EnvironmentCreated] or [EnvironmentDeleted].
type Event interface {
	// Type is the event's name in the outbox.
	Type() string
	// Validate holds the event, published for that service and environment,
	// against the rules of the contract. What it returns is an *InvalidError.
	Validate(serviceID, environmentID string) error
	// Media is the ID of the media that the event is about, empty for an
	// environment's event.
	Media() string
	// FileNames are all file names that the payload mentions, each once:
	// events that share one run in publish order.
	FileNames() []string
}

// MediaUploaded says that a media's bytes are new: a first upload, or a
// re-upload under the same or another file name.
type MediaUploaded struct {
	MediaID  string `json:"media_id"`
	FileName string `json:"file_name"`
	// PreviousFileName is the name before a re-upload, empty at a first one.
	PreviousFileName string `json:"previous_file_name,omitempty"`
	ContentType      string `json:"content_type"`
	// Size is in bytes; nil where it isn't known.
	Size *int64 `json:"size,omitempty"`
	// ChecksumSHA256 is 64 hex digits, empty where it isn't known. S3 itself
	// refuses bytes that don't match it.
	ChecksumSHA256 string `json:"checksum_sha256,omitempty"`
	// Source is where the bytes are: s3://bucket/key, https://…, or file: and
	// a path below the worker's file root. It must stay readable until the
	// event is completed or discarded. It may be a signed URL, so a secret.
	// A URL that came from outside goes through [WebSource].
	Source  string  `json:"source"`
	Version Version `json:"version"`
}

// MediaRenamed says that a media's file has another name.
type MediaRenamed struct {
	MediaID string  `json:"media_id"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Version Version `json:"version"`
}

// MediaDeleted says that a media is gone.
type MediaDeleted struct {
	MediaID  string  `json:"media_id"`
	FileName string  `json:"file_name"`
	Version  Version `json:"version"`
}

// EnvironmentCreated says that the environment under which it is published
// was made as a copy of another one.
type EnvironmentCreated struct {
	// SourceEnvironmentID is the environment copied from; empty is production.
	SourceEnvironmentID string `json:"source_environment_id"`
	// EnvironmentServiceID is the new environment's own service ID, which its
	// objects carry in their metadata and its directory is named after.
	EnvironmentServiceID string `json:"environment_service_id"`
}

// EnvironmentDeleted says that the environment under which it is published is
// gone, with all its media.
type EnvironmentDeleted struct{}

func (MediaUploaded) Type() string      { return MediaUploadedType }
func (MediaRenamed) Type() string       { return MediaRenamedType }
func (MediaDeleted) Type() string       { return MediaDeletedType }
func (EnvironmentCreated) Type() string { return EnvironmentCreatedType }
func (EnvironmentDeleted) Type() string { return EnvironmentDeletedType }

func (e MediaUploaded) Media() string    { return e.MediaID }
func (e MediaRenamed) Media() string     { return e.MediaID }
func (e MediaDeleted) Media() string     { return e.MediaID }
func (EnvironmentCreated) Media() string { return "" }
func (EnvironmentDeleted) Media() string { return "" }

func (e MediaUploaded) FileNames() []string    { return distinct(e.FileName, e.PreviousFileName) }
func (e MediaRenamed) FileNames() []string     { return distinct(e.From, e.To) }
func (e MediaDeleted) FileNames() []string     { return []string{e.FileName} }
func (EnvironmentCreated) FileNames() []string { return nil }
func (EnvironmentDeleted) FileNames() []string { return nil }

func distinct(name, other string) []string {
	if other == "" || other == name {
		return []string{name}
	}
	return []string{name, other}
}
