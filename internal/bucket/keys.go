package bucket

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/failure"
)

const (
	// maxKeyBytes is S3's limit for a key, in bytes of UTF-8.
	maxKeyBytes = 1024
	// maxSlug and hashDigits bound a directory's name: readable, yet unique.
	maxSlug    = 40
	hashDigits = 12
)

// Directory names the directory of an environment other than production: a
// slug of its service ID for people, and a hash of it against collisions.
// It is made once and then stored, so that a change here moves no files.
func Directory(environmentServiceID string) string {
	sum := sha256.Sum256([]byte(environmentServiceID))
	return slug(environmentServiceID) + "-" + hex.EncodeToString(sum[:])[:hashDigits]
}

// AnotherDirectory is for an environment whose usual directory is in somebody's
// way. Its name can't be known beforehand.
func AnotherDirectory(environmentServiceID string) string {
	random := make([]byte, hashDigits/2)
	_, _ = rand.Read(random) // never fails
	return slug(environmentServiceID) + "-" + hex.EncodeToString(random)
}

// slug keeps a–z and 0–9 and turns every run of anything else into one hyphen.
func slug(id string) string {
	var s strings.Builder
	for _, r := range strings.ToLower(id) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			s.WriteRune(r)
		case s.Len() > 0 && !strings.HasSuffix(s.String(), "-"):
			s.WriteByte('-')
		}
		if s.Len() == maxSlug {
			break
		}
	}
	if name := strings.TrimRight(s.String(), "-"); name != "" {
		return name
	}
	return "env"
}

// KeyPrefix is what all keys of an environment begin with: it ends in a slash,
// so that "folder/" never stands for "folderfoo/", and is empty at the root.
func KeyPrefix(prefix, directory string) string {
	var p string
	for _, part := range []string{prefix, directory} {
		if part = strings.Trim(part, "/"); part != "" {
			p += part + "/"
		}
	}
	return p
}

// Key builds the key of a media. Nothing else joins strings into a key.
func Key(prefix, directory, fileName string) (string, error) {
	if err := events.ValidateFileName(fileName); err != nil {
		return "", failure.New(failure.Permanent, failure.InvalidEvent, "file name %q: %w", fileName, err)
	}
	key := KeyPrefix(prefix, directory) + fileName
	if len(key) > maxKeyBytes {
		return "", failure.New(failure.Permanent, failure.InvalidEvent,
			"key %q has %d bytes, and S3 takes at most %d: shorten the file name", key, len(key), maxKeyBytes)
	}
	return key, nil
}

// FileName is the last segment of a key.
func FileName(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

// URL is where a media is served from: the custom domain, or the bucket's own.
func URL(customDomain, bucket, region, key string) string {
	base := strings.TrimRight(customDomain, "/")
	if base == "" {
		base = "https://" + bucket + ".s3." + region + ".amazonaws.com"
	}
	return base + "/" + escapePath(key)
}

// escapePath percent-encodes every byte but unreserved ones (RFC 3986) and the
// slashes between segments. URLs and CopySource are both spelled like this.
func escapePath(key string) string {
	const upperHex = "0123456789ABCDEF"
	var s strings.Builder
	s.Grow(len(key))
	for i := range len(key) {
		switch c := key[i]; {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9',
			c == '-', c == '.', c == '_', c == '~', c == '/':
			s.WriteByte(c)
		default:
			s.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
		}
	}
	return s.String()
}
