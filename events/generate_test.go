package events_test

import (
	"strings"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
)

// published is an event and where it is published.
type published struct {
	ServiceID, EnvironmentID string
	Event                    events.Event
}

// anyPublished draws valid events of all five types.
func anyPublished() *rapid.Generator[published] {
	return rapid.Custom(func(t *rapid.T) published {
		p := published{ServiceID: anyHeader().Draw(t, "service_id")}
		p.Event = rapid.OneOf(
			rapid.Map(anyUpload(), asEvent), rapid.Map(anyRename(), asEvent), rapid.Map(anyDelete(), asEvent),
			rapid.Map(anyEnvironment(), asEvent), rapid.Just[events.Event](events.EnvironmentDeleted{}),
		).Draw(t, "event")
		if _, isMedia := p.Event.(interface{ Media() string }); isMedia && p.Event.Media() != "" && rapid.Bool().Draw(t, "production") {
			return p
		}
		created, _ := p.Event.(events.EnvironmentCreated)
		p.EnvironmentID = anyHeader().
			Filter(func(id string) bool { return id != created.SourceEnvironmentID }).
			Draw(t, "environment_id")
		return p
	})
}

func asEvent[E events.Event](event E) events.Event { return event }

func anyUpload() *rapid.Generator[events.MediaUploaded] {
	return rapid.Custom(func(t *rapid.T) events.MediaUploaded {
		return events.MediaUploaded{
			MediaID:          anyMediaID().Draw(t, "media_id"),
			FileName:         anyFileName().Draw(t, "file_name"),
			PreviousFileName: rapid.OneOf(rapid.Just(""), anyFileName()).Draw(t, "previous_file_name"),
			ContentType:      anyHeader().Draw(t, "content_type"),
			Size:             rapid.Ptr(rapid.Int64Min(0), true).Draw(t, "size"),
			ChecksumSHA256:   rapid.StringMatching(`([0-9a-f]{64})?`).Draw(t, "checksum_sha256"),
			Source:           anySource().Draw(t, "source"),
			Version:          anyVersion().Draw(t, "version"),
		}
	})
}

func anyRename() *rapid.Generator[events.MediaRenamed] {
	return rapid.Custom(func(t *rapid.T) events.MediaRenamed {
		return events.MediaRenamed{
			MediaID: anyMediaID().Draw(t, "media_id"),
			From:    anyFileName().Draw(t, "from"),
			To:      anyFileName().Draw(t, "to"),
			Version: anyVersion().Draw(t, "version"),
		}
	})
}

func anyDelete() *rapid.Generator[events.MediaDeleted] {
	return rapid.Custom(func(t *rapid.T) events.MediaDeleted {
		return events.MediaDeleted{
			MediaID:  anyMediaID().Draw(t, "media_id"),
			FileName: anyFileName().Draw(t, "file_name"),
			Version:  anyVersion().Draw(t, "version"),
		}
	})
}

func anyEnvironment() *rapid.Generator[events.EnvironmentCreated] {
	return rapid.Custom(func(t *rapid.T) events.EnvironmentCreated {
		return events.EnvironmentCreated{
			SourceEnvironmentID:  rapid.OneOf(rapid.Just(""), anyHeader()).Draw(t, "source_environment_id"),
			EnvironmentServiceID: anyHeader().Draw(t, "environment_service_id"),
		}
	})
}

// anyText draws text with all that is awkward but valid: spaces, quotes, emoji,
// Japanese in both normalisation forms, bidirectional marks.
func anyText(refused string) *rapid.Generator[string] {
	awkward := rapid.SampledFrom([]rune(" +%\"'<>&*~#?.:\u2028\u202e\u3000\ufffd\ufeffがか\u3099🎉日"))
	char := rapid.OneOf(awkward, rapid.Rune()).Filter(func(r rune) bool {
		return !unicode.IsControl(r) && !strings.ContainsRune(refused, r)
	})
	return rapid.StringOfN(char, 1, 40, 512)
}

func anyMediaID() *rapid.Generator[string] { return anyText("") }

func anyFileName() *rapid.Generator[string] {
	return anyText("/\\\ufffe\uffff").Filter(func(name string) bool { return name != "." && name != ".." })
}

func anyHeader() *rapid.Generator[string] { return rapid.StringMatching(`[!-~]([ -~]{0,20}[!-~])?`) }

func anySource() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.Map(anyText(""), func(key string) string { return "s3://staging-bucket/" + key }),
		rapid.Map(rapid.StringMatching(`[a-z0-9]{1,9}\.example(:443)?([/?#][a-zA-Z0-9/?&=@:]{0,20})?`),
			func(rest string) string { return "https://" + rest }),
		rapid.Map(anyText("/"), func(path string) string { return "file:" + path }),
	)
}

func anyVersion() *rapid.Generator[events.Version] {
	last := time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	return rapid.Map(rapid.Int64Range(0, last.UnixMicro()), func(micros int64) events.Version {
		return events.NewVersion(time.UnixMicro(micros))
	})
}
