package media_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

const mebibyte = 1 << 20

func TestHTTPSGivesTheBytesAsTheyWereSent(t *testing.T) {
	t.Parallel()
	for _, length := range []int{0, 1, 4096, mebibyte, mebibyte + 1, 3*mebibyte + 17} {
		for _, chunked := range []bool{false, true} {
			for _, claimed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d bytes, chunked %t, claimed %t", length, chunked, claimed), func(t *testing.T) {
					t.Parallel()
					want := randomBytes(length)
					host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
						if !chunked {
							w.Header().Set("Content-Length", fmt.Sprint(length))
						}
						w.WriteHeader(http.StatusOK)
						http.NewResponseController(w).Flush()
						w.Write(want)
					})
					var size *int64
					if claimed {
						size = sized(length)
					}
					got, content, err := receive(t, newSources(t, options), host.URL+"/a.jpg", size, sumOf(want))
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, want) || content.Size != int64(length) {
						t.Errorf("got %d bytes, Size %d, want %d", len(got), content.Size, length)
					}
					_, seekable := content.Body.(io.Seeker)
					if streamed := length > mebibyte && (claimed || !chunked); seekable == streamed {
						t.Errorf("seekable = %t, want %t", seekable, !streamed)
					}
				})
			}
		}
	}
}

func TestSpooledContentCanBeSentAgainAndLeavesNoFile(t *testing.T) {
	t.Parallel()
	want := randomBytes(2 * mebibyte)
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
		http.NewResponseController(w).Flush()
		w.Write(want)
	})
	content, err := newSources(t, options).Open(testContext(t), media.Upload{Source: host.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer content.Body.Close()
	if left, _ := os.ReadDir(options.SpoolDir); len(left) != 0 {
		t.Errorf("the spool file has a name while it is used: %v", left)
	}
	for range 2 {
		got, err := io.ReadAll(content.Body)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
		if _, err := content.Body.(io.Seeker).Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHTTPSLiesAreFoundBeforeTheLastByte(t *testing.T) {
	t.Parallel()
	for _, length := range []int{10, 100_000, 2 * mebibyte} {
		content := randomBytes(length)
		tests := []struct {
			name    string
			chunked bool
			size    *int64
			sum     string
			code    string
		}{
			{name: "length shorter than the event's", size: sized(length + 1), code: failure.SizeMismatch},
			{name: "length longer than the event's", size: sized(length - 1), code: failure.SizeMismatch},
			{name: "unsaid length shorter than the event's", chunked: true, size: sized(length + 1), code: failure.SizeMismatch},
			{name: "unsaid length longer than the event's", chunked: true, size: sized(length - 1), code: failure.SizeMismatch},
			{name: "unsaid length, the event says none", chunked: true, size: sized(0), code: failure.SizeMismatch},
			{name: "other bytes", size: sized(length), sum: sumOf([]byte("other")), code: failure.ChecksumMismatch},
			{name: "other bytes of unsaid length", chunked: true, size: sized(length), sum: sumOf([]byte("other")), code: failure.ChecksumMismatch},
			{name: "other bytes of unknown length", chunked: true, sum: sumOf([]byte("other")), code: failure.ChecksumMismatch},
		}
		for _, test := range tests {
			t.Run(fmt.Sprintf("%s/%d", test.name, length), func(t *testing.T) {
				t.Parallel()
				host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
					if !test.chunked {
						w.Header().Set("Content-Length", fmt.Sprint(length))
					}
					http.NewResponseController(w).Flush()
					w.Write(content)
				})
				_, _, err := receive(t, newSources(t, options), host.URL, test.size, test.sum)
				wantFailure(t, err, failure.Permanent, test.code)
			})
		}
	}
}

func TestHTTPSBrokenOffIsRetried(t *testing.T) {
	t.Parallel()
	for _, chunked := range []bool{false, true} {
		for _, length := range []int{1000, 2 * mebibyte} {
			for _, size := range []*int64{nil, sized(length)} {
				t.Run(fmt.Sprintf("chunked %t, %d bytes, size known %t", chunked, length, size != nil), func(t *testing.T) {
					t.Parallel()
					host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
						if !chunked {
							w.Header().Set("Content-Length", fmt.Sprint(length))
						}
						w.Write(make([]byte, length/2))
						http.NewResponseController(w).Flush()
						panic(http.ErrAbortHandler)
					})
					_, _, err := receive(t, newSources(t, options), host.URL, size, "")
					wantFailure(t, err, failure.Transient, media.CodeUnavailable)
				})
			}
		}
	}
}

func TestHTTPSTooLargeIsFoundEarly(t *testing.T) {
	t.Parallel()
	const limit = 2 * mebibyte
	tests := []struct {
		name    string
		chunked bool
		size    *int64
		length  int
		code    string
	}{
		{name: "by the event", size: sized(limit + 1), length: limit + 1, code: failure.TooLarge},
		{name: "by the source", length: limit + 1, code: failure.TooLarge},
		{name: "while measured", chunked: true, length: 2 * limit, code: failure.TooLarge},
		{name: "not at the limit", length: limit},
		{name: "not at the limit when measured", chunked: true, length: limit},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
				if !test.chunked {
					w.Header().Set("Content-Length", fmt.Sprint(test.length))
				}
				http.NewResponseController(w).Flush()
				w.Write(make([]byte, test.length))
			})
			options.MaxUpload = limit
			content, err := newSources(t, options).Open(testContext(t), media.Upload{Source: host.URL, Size: test.size})
			if test.code != "" {
				wantFailure(t, err, failure.Permanent, test.code)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			content.Body.Close()
		})
	}
}

func TestHTTPSStatusDecidesWhatHappens(t *testing.T) {
	t.Parallel()
	tests := []struct {
		status int
		class  failure.Class
		code   string
	}{
		{401, failure.Permanent, failure.SourceGone},
		{403, failure.Permanent, failure.SourceGone},
		{404, failure.Permanent, failure.SourceGone},
		{410, failure.Permanent, failure.SourceGone},
		{408, failure.Transient, media.CodeUnavailable},
		{429, failure.Transient, media.CodeUnavailable},
		{500, failure.Transient, media.CodeUnavailable},
		{503, failure.Transient, media.CodeUnavailable},
		{204, failure.Permanent, failure.SourceRefused},
		{206, failure.Permanent, failure.SourceRefused},
		{300, failure.Permanent, failure.SourceRefused},
		{302, failure.Permanent, failure.SourceRefused}, // no Location
		{304, failure.Permanent, failure.SourceRefused},
		{400, failure.Permanent, failure.SourceRefused},
		{418, failure.Permanent, failure.SourceRefused},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.status), func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(test.status) })
			_, _, err := receive(t, newSources(t, options), host.URL, nil, "")
			wantFailure(t, err, test.class, test.code)
		})
	}
}

func TestHTTPSNeverUnpacks(t *testing.T) {
	t.Parallel()
	host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("Accept-Encoding = %q", got)
		}
		w.Header().Set("Content-Encoding", strings.TrimPrefix(r.URL.Path, "/"))
		w.Write([]byte("\x1f\x8b packed"))
	})
	sources := newSources(t, options)
	_, _, err := receive(t, sources, host.URL+"/gzip", nil, "")
	wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	got, _, err := receive(t, sources, host.URL+"/identity", nil, "")
	if err != nil || string(got) != "\x1f\x8b packed" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHTTPSThatKeepsUsWaitingIsCut(t *testing.T) {
	t.Parallel()
	const short = 50 * time.Millisecond
	tests := []struct {
		name  string
		send  int // bytes before the silence; -1: not even a head
		limit func(*media.Options)
		want  string
	}{
		{"no head", -1, func(o *media.Options) { o.HeaderTimeout = short }, "no answer in time"},
		{"silence in a small body", 100, func(o *media.Options) { o.IdleTimeout = short }, "sent nothing within 50ms"},
		{"silence in a large body", mebibyte, func(o *media.Options) { o.IdleTimeout = short }, "sent nothing within 50ms"},
		{"transfer takes too long", mebibyte, func(o *media.Options) { o.TransferTimeout = short }, "not transferred within 50ms"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
				if test.send >= 0 {
					w.Header().Set("Content-Length", fmt.Sprint(2*test.send))
					w.Write(make([]byte, test.send))
					http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
			})
			test.limit(&options)
			_, _, err := receive(t, newSources(t, options), host.URL, nil, "")
			wantFailure(t, err, failure.Transient, media.CodeSlow)
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q doesn't say %q", err, test.want)
			}
		})
	}
}

func TestCancelledWorkLosesNoAttempt(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/body":
			w.Header().Set("Content-Length", fmt.Sprint(2*mebibyte))
			http.NewResponseController(w).Flush()
		case "/chunks":
			http.NewResponseController(w).Flush()
		}
		asked <- struct{}{}
		<-r.Context().Done()
		// Returning ends an answer without a length in order, and the client
		// may get to see it while it closes.
	})
	sources := newSources(t, options)
	lost := errors.New("the lease is lost")
	for _, path := range []string{"/head", "/body", "/chunks"} {
		ctx, cancel := context.WithCancelCause(testContext(t))
		go func() {
			<-asked
			cancel(lost)
		}()
		content, err := sources.Open(ctx, media.Upload{Source: host.URL + path})
		if err == nil {
			_, err = io.ReadAll(content.Body)
			content.Body.Close()
		}
		if !errors.Is(err, lost) || failure.Of(err).Class != failure.Interrupted {
			t.Errorf("%s: got %s: %v", path, failure.Of(err).Class, err)
		}
		if _, err := sources.Open(ctx, media.Upload{Source: host.URL}); failure.Of(err).Class != failure.Interrupted {
			t.Errorf("opened under an ended context: %v", err)
		}
	}
}

func TestURLsSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	const secret = "s3kr1t"
	host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			w.Header().Set("Location", "http://user:"+secret+"@example.com/?"+secret)
			w.WriteHeader(302)
		case "/nowhere":
			w.Header().Set("Location", "https://%zz?"+secret)
			w.WriteHeader(302)
		case "/garbage", "/garbled-chunk":
			connection, _, _ := http.NewResponseController(w).Hijack()
			defer connection.Close()
			if r.URL.Path == "/garbled-chunk" {
				io.WriteString(connection, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			}
			io.WriteString(connection, secret+"\r\n\r\n")
		case "/long":
			w.Write(make([]byte, 100))
		default:
			w.WriteHeader(404)
		}
	})
	options.FileRoot = t.TempDir()
	sources := newSources(t, options)
	for _, source := range []string{
		host.URL + "/missing?X-Amz-Signature=" + secret,
		host.URL + "/redirect?" + secret,
		host.URL + "/nowhere?" + secret,
		host.URL + "/garbage?" + secret,
		host.URL + "/garbled-chunk?" + secret,
		host.URL + "/long?" + secret,
		"https://user:" + secret + "@example.com/",
		"https://127.0.0.2/?" + secret,
		"https://127.0.0.1:1/?" + secret + "#" + secret,
		"https://example.com/%zz?" + secret,
		"https://[::1/?" + secret,
		"https:///?" + secret,
		"http://example.com/?" + secret,
		"ftp://user:" + secret + "@example.com",
		host.URL + "/https%3A%2F%2Fuser%3A" + secret + "%40example.com%2Fa",
		"s3://other/a?X-Amz-Signature=" + secret,
		"s3://user:" + secret + "@other/a",
		"file:a?token=" + secret,
		secret,
	} {
		_, _, err := receive(t, sources, source, sized(7), "")
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestMissingSpoolDirectoryIsOurOwnFault(t *testing.T) {
	t.Parallel()
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
		http.NewResponseController(w).Flush()
		w.Write(make([]byte, 2*mebibyte))
	})
	options.SpoolDir = filepath.Join(t.TempDir(), "spool")
	if err := os.Mkdir(options.SpoolDir, 0o700); err != nil {
		t.Fatal(err)
	}
	sources := newSources(t, options)
	if err := os.Remove(options.SpoolDir); err != nil {
		t.Fatal(err)
	}
	_, _, err := receive(t, sources, host.URL, nil, "")
	wantFailure(t, err, failure.Transient, failure.Internal)
}
