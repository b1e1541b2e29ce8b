package media_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

// answering writes an answer as it stands, and then ends the connection in
// order, as a server that was stopped does.
func answering(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer connection.Close()
		io.WriteString(connection, answer)
	}
}

// cuts are answers that end before, or exactly where, the media does.
var cuts = []struct {
	name   string
	answer string
	size   *int64
	sum    string
	want   string // code of the failure, empty where the content is good
}{
	{name: "no length, cut", answer: "HTTP/1.1 200 OK\r\n\r\nhalf", want: failure.SourceRefused},
	{name: "no length, cut at once", answer: "HTTP/1.1 200 OK\r\n\r\n", want: failure.SourceRefused},
	{name: "no length, whole", answer: "HTTP/1.1 200 OK\r\n\r\nhalf and half", want: failure.SourceRefused},
	{name: "no length, HTTP/1.0", answer: "HTTP/1.0 200 OK\r\n\r\nhalf", want: failure.SourceRefused},
	{name: "no length but the event's, cut", answer: "HTTP/1.1 200 OK\r\n\r\nhalf", size: sized(13), want: media.CodeUnavailable},
	{name: "no length but the event's, longer", answer: "HTTP/1.1 200 OK\r\n\r\nhalf and half", size: sized(4), want: failure.SizeMismatch},
	{name: "no length but the event's, other bytes", answer: "HTTP/1.1 200 OK\r\n\r\nhalf", size: sized(4), sum: sumOf([]byte("four")), want: failure.ChecksumMismatch},
	{name: "no length but a checksum, cut", answer: "HTTP/1.1 200 OK\r\n\r\nhalf", sum: sumOf([]byte("half and half")), want: media.CodeUnavailable},
	{name: "no length but the event's, whole", answer: "HTTP/1.1 200 OK\r\n\r\nhalf and half", size: sized(13)},
	{name: "no length but a checksum, whole", answer: "HTTP/1.0 200 OK\r\n\r\nhalf and half", sum: sumOf([]byte("half and half"))},
	{name: "a length, cut", answer: "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nhalf", want: media.CodeUnavailable},
	{name: "a length, cut, HTTP/1.0", answer: "HTTP/1.0 200 OK\r\nContent-Length: 13\r\n\r\nhalf", want: media.CodeUnavailable},
	{name: "chunked, cut in a chunk", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nhalf", want: media.CodeUnavailable},
	{name: "chunked, cut between chunks", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", want: media.CodeUnavailable},
	{name: "chunked, cut before the last chunk's end", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nhalf and half\r\n0\r\n", want: media.CodeUnavailable},
	{name: "chunked, whole", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nhalf and half\r\n0\r\n\r\n"},
}

func TestHTTPSCutAnswerIsNeverAContent(t *testing.T) {
	t.Parallel()
	for _, test := range cuts {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, answering(test.answer))
			got, _, err := receive(t, newSources(t, options), host.URL, test.size, test.sum)
			wantContent(t, string(got), err, test.want)
		})
	}
}

// A proxy before the staging storage may cut just as well.
func TestStagingCutAnswerIsNeverAContent(t *testing.T) {
	t.Parallel()
	for _, test := range cuts {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			sources := newSources(t, newStaging(t, answering(test.answer)))
			got, _, err := receive(t, sources, "s3://staging/a.jpg", test.size, test.sum)
			wantContent(t, string(got), err, test.want)
		})
	}
}

func wantContent(t testing.TB, got string, err error, code string) {
	t.Helper()
	switch {
	case code == media.CodeUnavailable:
		wantFailure(t, err, failure.Transient, code)
	case code != "":
		wantFailure(t, err, failure.Permanent, code)
	case err != nil || got != "half and half":
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHTTPSEveryContentEncodingCounts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		lines   []string
		refused bool
	}{
		{lines: []string{"Content-Encoding: identity"}},
		{lines: []string{"content-encoding: Identity", "Content-Encoding: , identity ,"}},
		{lines: []string{"Content-Encoding:", "Content-Encoding: identity"}},
		{lines: []string{"Content-Encoding: identity", "Content-Encoding: gzip"}, refused: true},
		{lines: []string{"Content-Encoding:", "Content-Encoding: gzip"}, refused: true},
		{lines: []string{"Content-Encoding: gzip", "Content-Encoding: identity"}, refused: true},
		{lines: []string{"Content-Encoding: identity, gzip"}, refused: true},
		{lines: []string{"Content-Encoding: identity", "X-Other: 1", "CONTENT-ENCODING: br"}, refused: true},
		{lines: []string{"Content-Encoding : gzip"}, refused: true},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.lines, "; "), func(t *testing.T) {
			t.Parallel()
			const packed = "\x1f\x8b packed"
			head := "HTTP/1.1 200 OK\r\n" + strings.Join(test.lines, "\r\n") + "\r\n"
			host, options := newHost(t, answering(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(packed), packed)))
			got, _, err := receive(t, newSources(t, options), host.URL, nil, "")
			if test.refused {
				wantFailure(t, err, failure.Permanent, failure.SourceRefused)
				return
			}
			if err != nil || string(got) != packed {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
