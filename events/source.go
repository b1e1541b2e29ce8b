package events

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxSource, in bytes, leaves room for a presigned URL with a session token.
const maxSource = 16 << 10

// webScheme is how the sources begin that lie outside of the CMS.
const webScheme = "https://"

// WebSource makes a [MediaUploaded] event's source of a URL that came from
// outside, such as one that a user registered. Only https is taken: handed on
// unchecked, "s3://staging/another-tenant" and "file:" would be read with the
// worker's own rights. The error is an [*InvalidError] and repeats no part of
// the URL.
func WebSource(userURL string) (string, error) {
	fault := "must begin with https://, since it comes from outside"
	if strings.HasPrefix(userURL, webScheme) {
		fault = sourceFault(userURL)
	}
	if fault != "" {
		return "", &InvalidError{Type: MediaUploadedType, Field: "source", Reason: fault}
	}
	return userURL, nil
}

// sourceFault looks at the shape only: whether a source may be read is the
// worker's to decide. It repeats no part of the source, nor an error of the
// URL's parser, which would.
func sourceFault(source string) string {
	if source == "" {
		return "must not be empty"
	}
	if len(source) > maxSource {
		return fmt.Sprintf("is %d bytes long, of at most %d", len(source), maxSource)
	}
	if !utf8.ValidString(source) {
		return "is not valid UTF-8"
	}
	if strings.ContainsFunc(source, unicode.IsControl) {
		return "must not contain control characters"
	}
	switch {
	case strings.HasPrefix(source, "s3://"):
		bucket, key, _ := strings.Cut(strings.TrimPrefix(source, "s3://"), "/")
		if bucket == "" || key == "" {
			return "must name a bucket and a key: s3://bucket/key"
		}
	case strings.HasPrefix(source, webScheme):
		location, err := url.Parse(source)
		if err != nil || location.Hostname() == "" {
			return "is not a valid https URL with a host"
		}
		if location.User != nil {
			return "must not hold a user name or password"
		}
	case strings.HasPrefix(source, "file:"):
		path := strings.TrimPrefix(source, "file:")
		if path == "" || strings.HasPrefix(path, "/") {
			return "must be a path relative to the worker's file root: file:path"
		}
	default:
		return "must begin with s3://, https:// or file:"
	}
	return ""
}
