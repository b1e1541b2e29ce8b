package media_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

// answer is what a generated source sends, and how.
type answer struct {
	wire   []byte
	splits []int // where one write ends and the next begins
	hold   bool  // the connection stays open after the last byte
	media  []byte
	whole  bool // all of the answer is sent, and its framing is true
	open   bool // nothing but the connection's end delimits it
	packed bool
}

func drawAnswer(t *rapid.T) answer {
	length := rapid.OneOf(rapid.IntRange(0, 10_000), rapid.SampledFrom([]int{
		4095, 4096, 4097, mebibyte - 1, mebibyte, mebibyte + 1, mebibyte + 4096, mebibyte + 5000,
	})).Draw(t, "length")
	a := answer{media: randomBytes(length), whole: true}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.%d 200 OK\r\n", rapid.IntRange(0, 1).Draw(t, "version"))
	for _, encoding := range rapid.SliceOfN(rapid.SampledFrom([]string{"identity", "", "gzip", "identity, br"}), 0, 2).Draw(t, "encodings") {
		fmt.Fprintf(&head, "Content-Encoding: %s\r\n", encoding)
		a.packed = a.packed || strings.ContainsAny(encoding, "gb")
	}
	body := a.media
	switch framing := rapid.SampledFrom([]string{"length", "chunked", "open", "short", "two lengths"}).Draw(t, "framing"); framing {
	case "chunked":
		// Chunks are of HTTP/1.1 alone.
		rest := strings.Replace(head.String(), "HTTP/1.0", "HTTP/1.1", 1)
		head.Reset()
		head.WriteString(rest + "Transfer-Encoding: chunked\r\n")
		body = chunked(a.media, rapid.IntRange(1+length/50, length+1).Draw(t, "chunk"))
	case "open":
		a.open = true
	case "length":
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length)
	case "short":
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length+rapid.IntRange(1, 5000).Draw(t, "missing"))
		a.whole = false
	case "two lengths":
		fmt.Fprintf(&head, "Content-Length: %d\r\nContent-Length: %d\r\n", length, length/2+1)
		a.whole = length == length/2+1
	}
	a.wire = append([]byte(head.String()+"\r\n"), body...)
	if rapid.Bool().Draw(t, "cut") {
		at := rapid.IntRange(0, len(a.wire)-1).Draw(t, "cut at")
		a.wire, a.whole = a.wire[:at], false
	}
	a.splits = rapid.SliceOfN(rapid.IntRange(0, len(a.wire)), 0, 8).Draw(t, "splits")
	slices.Sort(a.splits)
	a.hold = rapid.IntRange(0, 9).Draw(t, "hold") == 0
	return a
}

func chunked(media []byte, size int) []byte {
	var wire bytes.Buffer
	for chunk := range slices.Chunk(media, size) {
		fmt.Fprintf(&wire, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	wire.WriteString("0\r\n\r\n")
	return wire.Bytes()
}

func (a *answer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	connection, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	from := 0
	for _, to := range append(a.splits, len(a.wire)) {
		if _, err := connection.Write(a.wire[from:to]); err != nil {
			return
		}
		from = to
	}
	if a.hold {
		io.Copy(io.Discard, buffered)
	}
}

// drawClaim is what the event says of the media, and whether that is true.
func drawClaim(t *rapid.T, content []byte) (upload media.Upload, honest bool) {
	honest = true
	switch rapid.SampledFrom([]string{"none", "right", "wrong"}).Draw(t, "size") {
	case "right":
		upload.Size = sized(len(content))
	case "wrong":
		upload.Size = sized(rapid.IntRange(0, 2*len(content)+5).Draw(t, "claimed"))
		honest = *upload.Size == int64(len(content))
	}
	switch rapid.SampledFrom([]string{"none", "right", "wrong"}).Draw(t, "checksum") {
	case "right":
		upload.SHA256 = sumOf(content)
	case "wrong":
		upload.SHA256, honest = sumOf(append([]byte("x"), content...)), false
	}
	return upload, honest
}

// A bucket holds all of the media or nothing, whatever the source sends, in
// whichever pieces, wherever it is cut; and no source keeps its slot.
func TestHostileSourceNeverLeavesHalfAFile(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[answer]
	host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) })
	patient := newSources(t, options)
	options.HeaderTimeout, options.RateGrace = 20*time.Millisecond, 20*time.Millisecond
	hasty := newSources(t, options)
	stored := make(chan []byte, 1)
	bucket := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil {
			got = nil
		} else if got == nil {
			got = []byte{}
		}
		stored <- got
	}))
	t.Cleanup(bucket.Close)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

	rapid.Check(t, func(t *rapid.T) {
		a := drawAnswer(t)
		upload, honest := drawClaim(t, a.media)
		upload.Source = host.URL
		current.Store(&a)
		sources := patient
		if a.hold {
			sources = hasty
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		got, err := send(ctx, sources, upload, client, bucket.URL, stored)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the source kept its slot: %v", err)
		}
		if err != nil {
			if code := failure.Of(err).Code; code == failure.Internal || code == failure.Timeout {
				t.Fatalf("unclassified: %v", err)
			}
		}
		told := !a.open || upload.Size != nil || upload.SHA256 != ""
		switch {
		case got != nil && !bytes.Equal(got, a.media):
			t.Fatalf("%d of %d bytes are in the bucket", len(got), len(a.media))
		case got != nil && (!honest || a.packed || !told):
			t.Fatal("what must be refused is in the bucket")
		case got == nil && a.whole && honest && told && !a.packed && !a.hold:
			t.Fatalf("a good answer isn't in the bucket: %v", err)
		case (got == nil) != (err != nil):
			t.Fatalf("in the bucket: %t, but the error is %v", got != nil, err)
		}
	})
}

// send puts an upload's content, as the worker does, and tells what a bucket
// has of it then: nil where the PUT never completed.
func send(ctx context.Context, sources *media.Sources, upload media.Upload, client *http.Client, url string, stored <-chan []byte) ([]byte, error) {
	content, err := sources.Open(ctx, upload)
	if err != nil {
		return nil, err
	}
	defer content.Body.Close()
	put, err := http.NewRequestWithContext(ctx, http.MethodPut, url, content.Body)
	if err != nil {
		return nil, err
	}
	put.ContentLength = content.Size
	if content.Size == 0 {
		put.Body = http.NoBody
	}
	response, err := client.Do(put)
	if err == nil {
		response.Body.Close()
	}
	return <-stored, err
}
