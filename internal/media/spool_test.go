package media_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

// unmeasured is a staging storage whose objects have that many bytes, and that
// doesn't say so.
type unmeasured int

func (u unmeasured) Do(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: -1, TransferEncoding: []string{"chunked"},
		Body: io.NopCloser(bytes.NewReader(make([]byte, u))),
	}, nil
}

const object = "s3://staging/object"

func newUnmeasured(t testing.TB, maxUpload, spoolLimit int64) *media.Sources {
	t.Helper()
	return newSources(t, media.Options{
		StagingBuckets: []string{"staging"},
		S3: s3.New(s3.Options{
			Region: "us-east-1", BaseEndpoint: aws.String("http://s3.invalid"), UsePathStyle: true, HTTPClient: unmeasured(maxUpload),
			Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
		}),
		SpoolDir: t.TempDir(), MaxUpload: maxUpload, SpoolLimit: spoolLimit,
	})
}

func TestOneServicesUploadsLeaveRoomInTheSpool(t *testing.T) {
	t.Parallel()
	const uploads, maxUpload, limit = 16, mebibyte + mebibyte/4, 5 * mebibyte
	sources := newUnmeasured(t, maxUpload, limit)
	open := func(service string) (*media.Content, error) {
		return sources.Open(testContext(t), media.Upload{ServiceID: service, Source: object})
	}
	opened := make(chan *media.Content, uploads)
	var atOnce sync.WaitGroup
	for range uploads {
		atOnce.Go(func() {
			content, err := open("A")
			if err == nil {
				opened <- content
				return
			}
			wantFailure(t, err, failure.Interrupted, failure.SpoolFull)
			if !strings.Contains(err.Error(), "OWNBUCKET_SPOOL_LIMIT") {
				t.Errorf("%q doesn't name the setting", err)
			}
		})
	}
	atOnce.Wait()
	close(opened)
	if n := len(opened); n == 0 || n*maxUpload > limit/2 || sources.Spooled() != int64(n*maxUpload) {
		t.Errorf("%d uploads of one service have %d bytes of the spool, want one at least and %d bytes at most", n, sources.Spooled(), limit/2)
	}
	other, err := open("B")
	if err != nil {
		t.Fatalf("another service's upload found no room: %v", err)
	}
	other.Body.Close()

	for content := range opened {
		if n, err := io.Copy(io.Discard, content.Body); n != maxUpload || err != nil {
			t.Errorf("%d bytes of a content, %v", n, err)
		}
		content.Body.Close()
	}
	if got := sources.Spooled(); got != 0 {
		t.Errorf("%d bytes were not given back", got)
	}
	again, err := open("A")
	if err != nil {
		t.Fatalf("no room although nothing is in the spool: %v", err)
	}
	again.Body.Close()
}

func TestAnUploadAsLargeAsPossibleFitsIntoTheLeastSpool(t *testing.T) {
	t.Parallel()
	sources := newUnmeasured(t, 2*mebibyte, 4*mebibyte)
	for _, service := range []string{"A", "B"} {
		content, err := sources.Open(testContext(t), media.Upload{ServiceID: service, Source: object})
		if err != nil {
			t.Fatal(err)
		}
		defer content.Body.Close()
	}
}

func TestContentInMemoryTakesNoneOfTheSpool(t *testing.T) {
	t.Parallel()
	sources := newUnmeasured(t, mebibyte, 2*mebibyte)
	content, err := sources.Open(testContext(t), media.Upload{Source: object})
	if err != nil {
		t.Fatal(err)
	}
	defer content.Body.Close()
	if got := sources.Spooled(); got != 0 {
		t.Errorf("%d bytes of the spool", got)
	}
}
