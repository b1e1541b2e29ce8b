package events_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/events"
)

func TestWebSourceTakesHTTPSOnly(t *testing.T) {
	for _, url := range []string{
		"https://example.com", "https://example.com/a b.jpg?x=1#y", "https://[2606:4700::1111]/写真.jpg",
	} {
		source, err := events.WebSource(url)
		if err != nil || source != url {
			t.Errorf("%q: got %q, %v", url, source, err)
		}
	}
	const secret = "s3kr1t"
	for _, url := range []string{
		"", "s3://staging/another-tenant/" + secret, "S3://staging/" + secret, "file:" + secret, "file:///etc/" + secret,
		"http://example.com/" + secret, "ftp://example.com/" + secret, "//example.com/" + secret, "example.com/" + secret,
		" https://example.com/" + secret, "https:example.com/" + secret, "https:///" + secret, "https://",
		"https://user:" + secret + "@example.com/", "https://example.com/\n" + secret, "https://example.com/%zz" + secret,
		"https://example.com/" + secret + strings.Repeat("x", 16<<10), "https://example.com/\xff" + secret,
	} {
		source, err := events.WebSource(url)
		var invalid *events.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != "source" || source != "" {
			t.Errorf("%q: got %q, %v", url, source, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: the error repeats it: %v", url, err)
		}
	}
}
