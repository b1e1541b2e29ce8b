package media_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

// newStaging answers GetObject as S3 does, path-style.
func newStaging(t testing.TB, handler http.HandlerFunc) media.Options {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	connections := &http.Transport{}
	t.Cleanup(connections.CloseIdleConnections)
	return media.Options{
		StagingBuckets: []string{"staging", "staging-2"},
		S3: s3.New(s3.Options{
			Region: "ap-northeast-1", BaseEndpoint: &server.URL, UsePathStyle: true,
			Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
			HTTPClient:  &http.Client{Transport: connections},
			Retryer:     aws.NopRetryer{},
		}),
	}
}

func TestStagingKeysAreTakenRaw(t *testing.T) {
	t.Parallel()
	options := newStaging(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.Path)
	})
	sources := newSources(t, options)
	for _, key := range []string{
		"a.jpg", "a/b/c.jpg", "a%20b", "a b+c?.txt", "a?x=1#y", "%2e%2e/a", "%", "..a/b..", "/leading", "a//b", "trailing/",
		"s3://x/y", "写真.jpg", "😀", strings.Repeat("x", 1024),
	} {
		want := "/staging/" + key
		got, _, err := receive(t, sources, "s3://staging/"+key, sized(len(want)), sumOf([]byte(want)))
		if err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", key, got, err)
		}
	}
}

func TestOnlyNamedStagingBucketsAreRead(t *testing.T) {
	t.Parallel()
	sources := newSources(t, newStaging(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) }))
	for _, source := range []string{
		"s3://other/key", "s3://Staging/key", "s3://staging-/key", "s3://stagin/g/key", "s3://staging.s3.amazonaws.com/key", "s3:///staging/key",
		"s3://", "s3://staging", "s3://staging/", "s3://id:secret@staging/key", "s3://staging%2Fkey", "S3://staging/key",
		"s3://staging/../other/key", "s3://staging/a/../../other/key", "s3://staging/.", "s3://staging/a/./b",
		"s3://staging/" + strings.Repeat("x", 1025),
	} {
		_, _, err := receive(t, sources, source, nil, "")
		wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	}
}

func TestStagingKeysCanBeBoundToTheirService(t *testing.T) {
	t.Parallel()
	tests := []struct {
		prefix, service, key string
		refused              bool
	}{
		{prefix: "", service: "S1", key: "S2/a.jpg"},
		{prefix: "{service_id}/", service: "S1", key: "S1/a.jpg"},
		{prefix: "{service_id}/", service: "SERVICE#1", key: "SERVICE#1/x/S2/a.jpg"},
		{prefix: "uploads/{service_id}/", service: "S1", key: "uploads/S1/a.jpg"},
		{prefix: "{service_id}/", service: "S1", key: "S2/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "S10/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "S1", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "s1/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "/S1/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "S1/../S2/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1", key: "{service_id}/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "S1/x", key: "S1/x/a.jpg", refused: true},
		{prefix: "{service_id}/", service: "", key: "/a.jpg", refused: true},
		{prefix: "uploads/{service_id}/", service: "S1", key: "S1/a.jpg", refused: true},
		{prefix: "uploads/{service_id}/", service: "..", key: "uploads/../a.jpg", refused: true},
	}
	for _, test := range tests {
		options := newStaging(t, func(w http.ResponseWriter, r *http.Request) {
			if test.refused {
				t.Errorf("asked for %s", r.URL)
			}
			fmt.Fprint(w, "bytes")
		})
		options.StagingPrefix = test.prefix
		content, err := newSources(t, options).Open(testContext(t), media.Upload{ServiceID: test.service, Source: "s3://staging/" + test.key})
		if test.refused {
			wantFailure(t, err, failure.Permanent, failure.SourceRefused)
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		content.Body.Close()
	}
}

func TestStagingErrorsNeverBlameTheCustomer(t *testing.T) {
	t.Parallel()
	tests := []struct {
		status int
		answer string
		class  failure.Class
		code   string
	}{
		{404, "NoSuchKey", failure.Permanent, failure.SourceGone},
		{404, "NoSuchBucket", failure.Transient, media.CodeDenied},
		{403, "AccessDenied", failure.Transient, media.CodeDenied},
		{403, "InvalidAccessKeyId", failure.Transient, media.CodeDenied},
		{403, "InvalidObjectState", failure.Transient, media.CodeDenied},
		{301, "PermanentRedirect", failure.Transient, media.CodeDenied},
		{400, "KMS.DisabledException", failure.Transient, media.CodeDenied},
		{400, "RequestTimeout", failure.Transient, media.CodeUnavailable},
		{503, "SlowDown", failure.Transient, media.CodeUnavailable},
		{500, "InternalError", failure.Transient, media.CodeUnavailable},
	}
	for _, test := range tests {
		t.Run(test.answer, func(t *testing.T) {
			t.Parallel()
			sources := newSources(t, newStaging(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("x-amz-request-id", "REQUEST1")
				w.WriteHeader(test.status)
				fmt.Fprintf(w, `<Error><Code>%s</Code><Message>m</Message></Error>`, test.answer)
			}))
			_, _, err := receive(t, sources, "s3://staging/key", nil, "")
			wantFailure(t, err, test.class, test.code)
			if id := failure.Of(err).RequestID; id != "REQUEST1" {
				t.Errorf("request ID %q", id)
			}
		})
	}
}

func TestStagingLiesAndInterruptions(t *testing.T) {
	t.Parallel()
	const length = 2 * mebibyte
	content := randomBytes(length)
	options := newStaging(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		sent := content
		if r.URL.Path != "/staging/good" {
			sent = sent[:length/2]
		}
		w.Write(sent)
		http.NewResponseController(w).Flush()
		switch r.URL.Path {
		case "/staging/cut":
			panic(http.ErrAbortHandler)
		case "/staging/silent":
			<-r.Context().Done()
		}
	})
	sources := newSources(t, options)

	got, _, err := receive(t, sources, "s3://staging/good", sized(length), sumOf(content))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_, _, err = receive(t, sources, "s3://staging/good", sized(length+1), "")
	wantFailure(t, err, failure.Permanent, failure.SizeMismatch)
	_, _, err = receive(t, sources, "s3://staging/good", nil, sumOf([]byte("other")))
	wantFailure(t, err, failure.Permanent, failure.ChecksumMismatch)
	_, _, err = receive(t, sources, "s3://staging/cut", sized(length), "")
	wantFailure(t, err, failure.Transient, media.CodeUnavailable)

	options.IdleTimeout = 50 * time.Millisecond
	_, _, err = receive(t, newSources(t, options), "s3://staging/silent", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeSlow)
}

func TestStagingErrorsHideWhatIsSecretInAKey(t *testing.T) {
	t.Parallel()
	const secret = "s3kr1t"
	options := newStaging(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/staging/cut") {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(404)
	})
	sources := newSources(t, options)
	for _, source := range []string{"s3://staging/cut?X-Amz-Signature=" + secret, "s3://staging/gone?X-Amz-Signature=" + secret} {
		_, _, err := receive(t, sources, source, nil, "")
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestStagingThatDoesNotAnswerIsRetried(t *testing.T) {
	t.Parallel()
	options := newStaging(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	options.HeaderTimeout = 50 * time.Millisecond
	_, _, err := receive(t, newSources(t, options), "s3://staging/key", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeSlow)
}
