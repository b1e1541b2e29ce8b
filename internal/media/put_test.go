package media_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func TestPutOfALyingSourceNeverCompletes(t *testing.T) {
	t.Parallel()
	content := randomBytes(2 * mebibyte)
	tests := []struct {
		name string
		size int
		sum  string
		code string
	}{
		{name: "too short", size: len(content) + 1, code: failure.SizeMismatch},
		{name: "too long", size: len(content) - 1, code: failure.SizeMismatch},
		{name: "other bytes", size: len(content), sum: sumOf(nil), code: failure.ChecksumMismatch},
		{name: "as promised", size: len(content), sum: sumOf(content)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stored := make(chan error, 1)
			bucket := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				if err == nil && n != r.ContentLength {
					err = fmt.Errorf("%d of %d bytes came", n, r.ContentLength)
				}
				stored <- err
			}))
			defer bucket.Close()
			host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
				http.NewResponseController(w).Flush() // without Content-Length
				w.Write(content)
			})
			source, err := newSources(t, options).Open(testContext(t), media.Upload{Source: host.URL, Size: sized(test.size), SHA256: test.sum})
			if err != nil {
				t.Fatal(err)
			}
			put, err := http.NewRequestWithContext(testContext(t), http.MethodPut, bucket.URL, source.Body)
			if err != nil {
				t.Fatal(err)
			}
			put.ContentLength = source.Size
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			response, err := client.Do(put)
			if err == nil {
				response.Body.Close()
			}
			arrived := <-stored
			if test.code == "" {
				if err != nil || arrived != nil {
					t.Errorf("sent: %v, received: %v", err, arrived)
				}
				return
			}
			wantFailure(t, err, failure.Permanent, test.code)
			if !errors.Is(arrived, io.ErrUnexpectedEOF) {
				t.Errorf("the bucket saw a complete PUT: %v", arrived)
			}
		})
	}
}
