package media_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
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
	splits []int         // where one write ends and the next begins
	pause  time.Duration // between them
	// hold: the connection stays open after the last byte. trickle: from there on
	// bytes come one by one, slowly; -1: they don't.
	hold    bool
	trickle int
	// redirects come before it; of one of them that many bytes are sent, the one
	// with so many more to come. -1: all of each.
	redirects, cutRedirect, redirectCut int
	// encryptedCut is after how many bytes of TLS a connection goes silent, or
	// ends without TLS's word for it; -1: never.
	encryptedCut  int
	encryptedHold bool
	// wasCut: a connection has come that far.
	wasCut *atomic.Bool

	media  []byte
	whole  bool // all of the answer is sent, and its framing is true
	packed bool
}

func drawAnswer(t *rapid.T) answer {
	length := rapid.OneOf(rapid.IntRange(0, 10_000), rapid.SampledFrom([]int{
		4095, 4096, 4097, mebibyte - 1, mebibyte, mebibyte + 1, mebibyte + 4096, mebibyte + 5000,
	})).Draw(t, "length")
	a := answer{media: randomBytes(length), whole: true, trickle: -1, cutRedirect: -1, encryptedCut: -1, wasCut: new(atomic.Bool)}
	var head strings.Builder
	for range rapid.IntRange(0, 2).Draw(t, "interim answers") {
		head.WriteString("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
	}
	framing := rapid.SampledFrom([]string{"length", "length", "chunked", "chunked", "open", "more than there is", "less than there is", "two lengths"}).Draw(t, "framing")
	version := rapid.IntRange(0, 1).Draw(t, "version")
	if framing == "chunked" {
		version = 1 // chunks are of HTTP/1.1 alone
	}
	fmt.Fprintf(&head, "HTTP/1.%d 200 OK\r\n", version)
	for _, encoding := range rapid.SampledFrom([][]string{nil, nil, nil, {"identity"}, {"", "identity"}, {"gzip"}, {"identity", "br"}, {"identity, gzip"}}).Draw(t, "encodings") {
		fmt.Fprintf(&head, "Content-Encoding: %s\r\n", encoding)
		a.packed = a.packed || strings.ContainsAny(encoding, "gb")
	}
	body := a.media
	switch framing {
	case "chunked":
		head.WriteString("Transfer-Encoding: chunked\r\n")
		body = chunked(a.media, rapid.IntRange(1+length/50, length+1).Draw(t, "chunk"),
			rapid.SampledFrom([]string{"", ";a=b"}).Draw(t, "extension"), rapid.SampledFrom([]string{"", "X-Sum: 1\r\n"}).Draw(t, "trailer"))
	case "length":
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length)
	case "more than there is":
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length+rapid.IntRange(1, 5000).Draw(t, "missing"))
		a.whole = false
	case "less than there is":
		// HTTP knows no way to see this.
		a.media = a.media[:rapid.IntRange(0, length).Draw(t, "told")]
		fmt.Fprintf(&head, "Content-Length: %d\r\n", len(a.media))
	case "two lengths":
		fmt.Fprintf(&head, "Content-Length: %d\r\nContent-Length: %d\r\n", length, length/2+1)
		a.whole = length == length/2+1
	}
	head.WriteString("\r\n")
	a.wire = append([]byte(head.String()), body...)
	switch rapid.SampledFrom([]string{"", "", "", "", "cut in the head", "cut", "broken"}).Draw(t, "fault") {
	case "cut in the head":
		a.wire, a.whole = a.wire[:rapid.IntRange(0, head.Len()-1).Draw(t, "cut at")], false
	case "cut":
		a.wire, a.whole = a.wire[:rapid.IntRange(0, len(a.wire)-1).Draw(t, "cut at")], false
	case "broken":
		a.wire[rapid.IntRange(0, head.Len()-1).Draw(t, "broken at")], a.whole = rapid.Byte().Draw(t, "broken"), false
	}
	a.drawDelivery(t)
	return a
}

// drawDelivery decides how the answer comes.
func (a *answer) drawDelivery(t *rapid.T) {
	a.splits = rapid.SliceOfN(rapid.IntRange(0, len(a.wire)), 0, 8).Draw(t, "splits")
	slices.Sort(a.splits)
	a.pause = rapid.SampledFrom([]time.Duration{0, time.Millisecond}).Draw(t, "pause")
	a.redirects = rapid.SampledFrom([]int{0, 0, 0, 0, 1, 2, 5, 6}).Draw(t, "redirects")
	switch rapid.SampledFrom([]string{"", "", "", "", "", "", "hold", "trickle", "TLS cut", "TLS cut", "redirect cut", "redirect cut"}).Draw(t, "delivery") {
	case "hold":
		a.hold = true
	case "trickle":
		a.trickle = rapid.IntRange(0, len(a.wire)).Draw(t, "trickle")
	case "TLS cut":
		// A handshake takes some 2,000 bytes.
		a.encryptedCut = rapid.OneOf(rapid.IntRange(0, 4000), rapid.IntRange(0, len(a.wire)+4000)).Draw(t, "encrypted cut")
		a.encryptedHold = rapid.Bool().Draw(t, "encrypted hold")
	case "redirect cut":
		if a.redirects > 0 {
			a.cutRedirect = rapid.IntRange(1, a.redirects).Draw(t, "redirect to cut")
			a.redirectCut = rapid.IntRange(0, len(redirect(a.cutRedirect))-1).Draw(t, "redirect's cut")
		}
	}
}

// silent tells whether the source may stop sending without ending.
func (a *answer) silent() bool { return a.hold || a.trickle >= 0 || a.encryptedHold }

// good tells whether the answer must arrive.
func (a *answer) good() bool {
	return a.whole && !a.packed && !a.silent() && a.cutRedirect < 0 && a.redirects <= 5 && !a.wasCut.Load()
}

func chunked(media []byte, size int, extension, trailer string) []byte {
	var wire bytes.Buffer
	for chunk := range slices.Chunk(media, size) {
		fmt.Fprintf(&wire, "%x%s\r\n%s\r\n", len(chunk), extension, chunk)
	}
	wire.WriteString("0\r\n" + trailer + "\r\n")
	return wire.Bytes()
}

func redirect(toCome int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /%d\r\n\r\n", toCome-1)
}

func (a *answer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	connection, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	switch toCome, _ := strconv.Atoi(r.URL.Path[1:]); {
	case toCome == a.cutRedirect:
		connection.Write(redirect(toCome)[:a.redirectCut])
		return
	case toCome > 0:
		connection.Write(redirect(toCome))
		return
	}
	from := 0
	for _, to := range append(a.splits, len(a.wire)) {
		if a.trickle >= 0 && to > a.trickle {
			to = max(a.trickle, from)
		}
		if _, err := connection.Write(a.wire[from:to]); err != nil {
			return
		}
		from = to
		time.Sleep(a.pause)
	}
	for ; from < len(a.wire); from++ {
		if _, err := connection.Write(a.wire[from : from+1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	if a.hold {
		io.Copy(io.Discard, buffered)
	}
}

// told is what HTTP itself makes of the wire: the content, nil where it isn't
// whole, and whether anything but the connection's end delimits it.
func (a *answer) told() (content []byte, delimited bool) {
	wire := bufio.NewReader(bytes.NewReader(a.wire))
	for {
		response, err := http.ReadResponse(wire, nil)
		switch {
		case err != nil:
			return nil, false
		case response.StatusCode < 200:
			continue
		}
		content, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != 200 {
			return nil, false
		}
		return append([]byte{}, content...), response.ContentLength >= 0 || len(response.TransferEncoding) > 0
	}
}

// cutListener's connections end, or go silent, as the current answer says.
type cutListener struct {
	net.Listener
	current *atomic.Pointer[answer]
}

func (l cutListener) Accept() (net.Conn, error) {
	connection, err := l.Listener.Accept()
	if a := l.current.Load(); err == nil && a.encryptedCut >= 0 {
		connection = &cutConn{Conn: connection, answer: a, left: a.encryptedCut}
	}
	return connection, err
}

type cutConn struct {
	net.Conn
	answer *answer
	left   int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	c.answer.wasCut.Store(true)
	n, _ := c.Conn.Write(p[:c.left])
	c.left = 0
	if c.answer.encryptedHold {
		io.Copy(io.Discard, c.Conn)
	}
	c.Close()
	return n, net.ErrClosed
}

// drawClaim is what the event says of the media.
func drawClaim(t *rapid.T, content []byte) (upload media.Upload) {
	switch rapid.SampledFrom([]string{"none", "right", "right", "wrong"}).Draw(t, "size") {
	case "right":
		upload.Size = sized(len(content))
	case "wrong":
		upload.Size = sized(rapid.IntRange(0, 2*len(content)+5).Draw(t, "claimed"))
	}
	switch rapid.SampledFrom([]string{"none", "right", "right", "wrong"}).Draw(t, "checksum") {
	case "right":
		upload.SHA256 = sumOf(content)
	case "wrong":
		upload.SHA256 = sumOf(append([]byte("x"), content...))
	}
	return upload
}

// honest tells whether what the event says of the media is true.
func honest(upload media.Upload, content []byte) bool {
	return (upload.Size == nil || *upload.Size == int64(len(content))) && (upload.SHA256 == "" || upload.SHA256 == sumOf(content))
}

// A bucket holds all of the media or nothing, whatever the source sends, in
// whichever pieces and at whatever pace, wherever it is cut; and no source keeps
// its slot. What bounds that sums up to less than a second here; the limits beside
// it are above the minute that the test allows.
func TestHostileSourceNeverLeavesHalfAFile(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[answer]
	host, options := newHostBehind(t, func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) },
		func(l net.Listener) net.Listener { return cutListener{l, &current} })
	patient := newSources(t, options)
	options.ConnectTimeout, options.HeaderTimeout = 20*time.Millisecond, 20*time.Millisecond
	options.RateGrace, options.MinRate = 20*time.Millisecond, 64*mebibyte
	options.IdleTimeout = 2 * time.Minute
	hasty := newSources(t, options)

	ends := make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		a := drawAnswer(t)
		upload := drawClaim(t, a.media)
		upload.Source = host.URL + "/" + strconv.Itoa(a.redirects)
		current.Store(&a)
		sources := patient
		if a.silent() {
			sources = hasty
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		got, err := send(ctx, sources, upload)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the source kept its slot: %v", err)
		}
		if err != nil {
			if code := failure.Of(err).Code; code == failure.Internal || code == failure.Timeout {
				t.Fatalf("unclassified: %v", err)
			}
		}
		want, delimited := a.told()
		delimited = delimited || upload.Size != nil || upload.SHA256 != ""
		switch {
		case got != nil && !bytes.Equal(got, want):
			t.Fatalf("%d of %d bytes are in the bucket", len(got), len(want))
		case got != nil && (!honest(upload, got) || a.packed && a.whole || !delimited || a.redirects > 5 || a.cutRedirect >= 0):
			t.Fatal("what must be refused is in the bucket")
		case got == nil && a.good() && honest(upload, a.media) && delimited:
			t.Fatalf("a good answer isn't in the bucket: %v", err)
		case (got == nil) != (err != nil):
			t.Fatalf("in the bucket: %t, but the error is %v", got != nil, err)
		}
		if err == nil {
			ends["arrived"]++
		} else {
			ends[failure.Of(err).Code]++
		}
	})
	t.Log(ends)
}

// send tells what a bucket has of an upload's content: all that was announced, as
// soon as it has come, or nothing.
func send(ctx context.Context, sources *media.Sources, upload media.Upload) ([]byte, error) {
	content, err := sources.Open(ctx, upload)
	if err != nil {
		return nil, err
	}
	defer content.Body.Close()
	stored := make([]byte, content.Size)
	if _, err := io.ReadFull(content.Body, stored); err != nil {
		return nil, err
	}
	return stored, nil
}
