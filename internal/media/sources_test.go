package media_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func TestSourcesAreClosedUnlessConfigured(t *testing.T) {
	t.Parallel()
	sources := newSources(t, media.Options{})
	for _, source := range []string{
		"", "a.jpg", "/etc/passwd", "file:etc/passwd", "file:///etc/passwd", "FILE:a", "s3://bucket/key", "s3:bucket/key",
		"http://example.com/", "https:example.com", "https:/example.com", "https://", "ftp://example.com/", "data:,x", "javascript:x", ":", "//x",
	} {
		_, _, err := receive(t, sources, source, nil, "")
		wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for name, options := range map[string]media.Options{
		"limit above one PUT's":       {MaxUpload: media.MaxUpload + 1},
		"staging prefix without it":   {StagingPrefix: "uploads/"},
		"staging prefix without end":  {StagingPrefix: "{service_id}"},
		"staging prefix of a part":    {StagingPrefix: "of-{service_id}/"},
		"staging prefix that goes on": {StagingPrefix: "{service_id}/uploads"},
		"negative rate":               {MinRate: -1},
		"negative limit":              {MaxUpload: -1},
		"negative limit of the spool": {SpoolLimit: -1},
		"no room for two uploads":     {MaxUpload: 100, SpoolLimit: 199},
		"no client for staging":       {StagingBuckets: []string{"staging"}},
		"staging bucket with a slash": {StagingBuckets: []string{"a/b"}, S3: &s3.Client{}},
		"file root is a file":         {FileRoot: file},
		"no such file root":           {FileRoot: file + "-missing"},
		"no such spool directory":     {SpoolDir: file + "-missing"},
	} {
		if _, err := media.New(options); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// onlyStaging answers GetObject, and tells of requests for any other bucket.
type onlyStaging struct{ t testing.TB }

func (o onlyStaging) Do(r *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(r.URL.EscapedPath(), "/staging/") || strings.Contains(r.URL.Path+"/", "/../") {
		o.t.Errorf("asked for %s", r.URL)
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: 2, Body: io.NopCloser(strings.NewReader("s3"))}, nil
}

func FuzzSourceNeverLeavesWhatIsAllowed(f *testing.F) {
	base, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	root := filepath.Join(base, "root")
	write(f, filepath.Join(base, "secret"), "secret")
	write(f, filepath.Join(root, "a", "b"), "in")
	for name, target := range map[string]string{"out": "..", "a/out": "../../secret", "abs": base} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			f.Fatal(err)
		}
	}
	for _, seed := range []string{
		"file:a/b", "file:../secret", "file:out/secret", "file:a/out", "file:abs/secret", "file:a/../a/b", "file:a//b/", "file:/" + base,
		"s3://staging/key", "s3://staging/../other/key", "s3://other/key", "s3://staging", "s3:///key", "s3://staging/%2e%2e/x?y#z",
		"https://example.com/a?b", "https://127.0.0.1/", "HTTPS://[::1]:1", "https://user@example.com", "https://a b/", "http://example.com",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		sources := newSources(t, media.Options{
			FileRoot:       root,
			StagingBuckets: []string{"staging"},
			S3: s3.New(s3.Options{
				Region: "us-east-1", BaseEndpoint: aws.String("http://s3.invalid"), UsePathStyle: true, HTTPClient: onlyStaging{t},
				Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
			}),
			// https gets as far as the resolver or, at a literal address, to a
			// connect that has no time left.
			Resolver:       &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, io.EOF }},
			ConnectTimeout: 1,
		})
		content, err := sources.Open(t.Context(), media.Upload{Source: source})
		if err != nil {
			var classified *failure.Error
			if classified = failure.Of(err); classified.Code == failure.Internal {
				t.Errorf("%q: unclassified: %v", source, err)
			}
			return
		}
		defer content.Body.Close()
		got, err := io.ReadAll(content.Body)
		if err != nil || !bytes.Equal(got, []byte("in")) && !bytes.Equal(got, []byte("s3")) {
			t.Errorf("%q gave %q, %v", source, got, err)
		}
	})
}
