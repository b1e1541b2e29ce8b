package bucket

import (
	"mime"
	"strings"
	"time"
)

// Stamp says for which event an object was written. It stands in the object's
// metadata, and is how we tell our objects from a stranger's.
type Stamp struct {
	// ServiceID is that of the environment which the object belongs to.
	ServiceID string
	// Version is the event's, in microseconds since 1970 in UTC.
	Version int64
}

// FormatVersion spells a version as the metadata does (manual: "タイムスタンプ形式の
// バージョン"), to the second: versions are never ordered by it.
func FormatVersion(us int64) string {
	return time.UnixMicro(us).UTC().Format("20060102150405")
}

const uploadSourceKey = "upload-source"

// metadata is what every object that we write carries.
func (s Stamp) metadata(brand string) map[string]string {
	word := strings.ToLower(brand)
	return map[string]string{
		uploadSourceKey:   brand,
		word + "-service": strings.TrimSpace(s.ServiceID),
		word + "-version": FormatVersion(s.Version),
		word + "-status":  "public",
	}
}

// Object is what a HEAD tells about an object.
type Object struct {
	Key  string
	ETag string // as S3 spells it, quotes included
	Size int64

	ContentType  string
	UploadSource string
	ServiceID    string
	Version      string // yyyyMMddHHmmss
	// SHA256 is in hex, and only there when asked for and when S3 has one of
	// the whole object.
	SHA256 string
}

// HasStamp tells whether the object was written for exactly this stamp.
func (o Object) HasStamp(brand string, s Stamp) bool {
	return o.UploadSource == brand &&
		o.ServiceID == strings.TrimSpace(s.ServiceID) &&
		o.Version == FormatVersion(s.Version)
}

// readStamp fills in what the metadata says. S3 encodes values beyond ASCII as
// RFC 2047 does.
func (o *Object) readStamp(brand string, metadata map[string]string) {
	word := strings.ToLower(brand)
	value := func(name string) string {
		if decoded, err := new(mime.WordDecoder).DecodeHeader(metadata[name]); err == nil {
			return decoded
		}
		return metadata[name]
	}
	o.UploadSource = value(uploadSourceKey)
	o.ServiceID = value(word + "-service")
	o.Version = value(word + "-version")
}
