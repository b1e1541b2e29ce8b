package bucket_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

var errAny = errors.New("any")

// head answers a HEAD of an object with this ETag.
func head(etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Length", "3")
	}
}

func copyInput(c bucket.Condition) bucket.CopyInput {
	return bucket.CopyInput{
		SourceKey: "media/a b+%ム.png", SourceETag: `"s1"`, Key: "media/b.png",
		ContentType: "image/png", Stamp: stamp, Condition: c,
	}
}

func TestCopyReplacesMetadataAndTakesNeitherTagsNorAnnotations(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	b := w.bucket(t, func(a *bucket.Account) { a.Owner = "123456789012" })
	etag, err := b.Copy(t.Context(), copyInput(bucket.Condition{IfMatch: `"old"`}))
	if err != nil {
		t.Fatal(err)
	}
	if etag != `"c1"` {
		t.Errorf("ETag %s", etag)
	}
	want := map[string]string{
		"X-Amz-Copy-Source":                  "alpha/media/a%20b%2B%25%E3%83%A0.png",
		"X-Amz-Copy-Source-If-Match":         `"s1"`,
		"If-Match":                           `"old"`,
		"X-Amz-Metadata-Directive":           "REPLACE",
		"X-Amz-Tagging-Directive":            "REPLACE",
		"X-Amz-Object-Annotation-Directive":  "EXCLUDE",
		"X-Amz-Tagging":                      "",
		"X-Amz-Acl":                          "",
		"Cache-Control":                      "",
		"Content-Type":                       "image/png",
		"X-Amz-Meta-Upload-Source":           "microcms",
		"X-Amz-Meta-Microcms-Service":        service,
		"X-Amz-Meta-Microcms-Version":        "20250812154922",
		"X-Amz-Meta-Microcms-Status":         "public",
		"X-Amz-Expected-Bucket-Owner":        "123456789012",
		"X-Amz-Source-Expected-Bucket-Owner": "123456789012",
	}
	got := w.only(t)
	sent := map[string]string{}
	for name := range want {
		sent[name] = got.header.Get(name)
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Error(diff)
	}
}

// atAWS sends requests of a pool made for AWS's own S3 to the test's server.
func atAWS(w *wire) func(*bucket.Options) {
	return func(o *bucket.Options) {
		o.AWS.BaseEndpoint = aws.String("http://s3.ap-northeast-1.amazonaws.com")
		o.Transport = redirect{w}
	}
}

type redirect struct{ *wire }

func (r redirect) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Host = req.URL.Host
	req.URL.Host = r.Listener.Addr().String()
	return r.Client().Transport.RoundTrip(req)
}

func TestCopyLooksFirstWhereTheConditionMayBeIgnored(t *testing.T) {
	t.Parallel()
	taken := bucket.Condition{IfNoneMatch: true}
	for _, tc := range []struct {
		name    string
		aws     bool
		answers []http.HandlerFunc
		want    error
		methods []string
	}{
		{name: "a stand-in, taken", answers: []http.HandlerFunc{head(`"x"`)}, want: bucket.ErrConditionFailed, methods: []string{"HEAD"}},
		{name: "a stand-in, free", answers: []http.HandlerFunc{s3Error(404, "", ""), stored}, methods: []string{"HEAD", "PUT"}},
		{name: "AWS", aws: true, answers: []http.HandlerFunc{stored}, methods: []string{"PUT"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, each(t, tc.answers...))
			p := w.pool(t)
			if tc.aws {
				p = w.pool(t, atAWS(w))
			}
			b, err := p.Bucket(account)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Copy(t.Context(), copyInput(taken)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if diff := cmp.Diff(tc.methods, methods(w)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func methods(w *wire) []string {
	var m []string
	for _, call := range w.calls() {
		m = append(m, call.method)
	}
	return m
}

func TestCopyTellsWhichOfTheTwoObjectsIsWrong(t *testing.T) {
	t.Parallel()
	overwrite := bucket.Condition{IfMatch: `"old"`}
	denied := s3Error(403, "AccessDenied", "no")
	for _, tc := range []struct {
		name    string
		answers []http.HandlerFunc
		want    error
		code    string
	}{
		{"412, source as it was", []http.HandlerFunc{s3Error(412, "PreconditionFailed", ""), head(`"s1"`)}, bucket.ErrConditionFailed, bucket.ConditionFailed},
		{"412, source changed", []http.HandlerFunc{s3Error(412, "PreconditionFailed", ""), head(`"s2"`)}, bucket.ErrSourceChanged, failure.SourceChanged},
		{"412, source gone", []http.HandlerFunc{s3Error(412, "PreconditionFailed", ""), s3Error(404, "", "")}, bucket.ErrSourceNotFound, failure.ObjectMissing},
		{"404, source there", []http.HandlerFunc{s3Error(404, "NoSuchKey", ""), head(`"s1"`)}, bucket.ErrConditionFailed, bucket.ConditionFailed},
		{"404, source gone", []http.HandlerFunc{s3Error(404, "NoSuchKey", ""), s3Error(404, "", "")}, bucket.ErrSourceNotFound, failure.ObjectMissing},
		{"403, source gone", []http.HandlerFunc{denied, listing("")}, bucket.ErrSourceNotFound, failure.ObjectMissing},
		{"403, another key is listed", []http.HandlerFunc{denied, listing("", "media/a+b%2B%25%E3%83%A0.png2")}, bucket.ErrSourceNotFound, failure.ObjectMissing},
		{"403, source there", []http.HandlerFunc{denied, listing("", "media/a+b%2B%25%E3%83%A0.png")}, errAny, failure.Denied},
		{"403, and LIST too", []http.HandlerFunc{denied, denied}, errAny, failure.Denied},
		{"403 of KMS", []http.HandlerFunc{s3Error(403, "AccessDenied", "not authorized to perform: kms:Decrypt on resource")}, errAny, bucket.KMSDenied},
		{"no bucket", []http.HandlerFunc{s3Error(404, "NoSuchBucket", "")}, errAny, bucket.NoSuchBucket},
		{"200 and nothing else", []http.HandlerFunc{func(http.ResponseWriter, *http.Request) {}}, errAny, failure.ServerError},
		{"200 without an ETag", []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `<CopyObjectResult><LastModified>2026-01-02T03:04:05Z</LastModified></CopyObjectResult>`)
		}}, errAny, failure.ServerError},
		{"too large", []http.HandlerFunc{s3Error(400, "InvalidRequest", "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120")}, errAny, failure.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, each(t, tc.answers...))
			_, err := w.bucket(t).Copy(t.Context(), copyInput(overwrite))
			if err == nil || (tc.want != errAny && !errors.Is(err, tc.want)) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			for _, other := range []error{bucket.ErrConditionFailed, bucket.ErrSourceChanged, bucket.ErrSourceNotFound} {
				if other != tc.want && errors.Is(err, other) {
					t.Errorf("%v is %v too", err, other)
				}
			}
			if f := failure.Of(err); f == nil || f.Code != tc.code {
				t.Errorf("want %s: %v", tc.code, err)
			}
		})
	}
}

func TestCopyWithA200AndAnErrorInsideIsNoCopy(t *testing.T) {
	t.Parallel()
	w := newWire(t, s3Error(200, "InternalError", "try again"))
	_, err := w.bucket(t).Copy(t.Context(), copyInput(bucket.Condition{IfMatch: "e"}))
	if f := failure.Of(err); f == nil || f.Class != failure.Transient {
		t.Error(err)
	}
}

func TestCopyReadsOnlyWhereItsSessionMay(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	in := copyInput(bucket.Condition{IfMatch: "e"})
	in.SourceKey = "production/a.png"
	if _, err := w.bucket(t).Copy(t.Context(), in); failure.Of(err).Class != failure.Permanent {
		t.Error(err)
	}
	b := w.bucket(t, func(a *bucket.Account) { a.ReadPrefix = aws.String("production") })
	if _, err := b.Copy(t.Context(), in); err != nil {
		t.Error(err)
	}
	in.SourceKey = "productionfoo/a.png"
	if _, err := b.Copy(t.Context(), in); err == nil || failure.Of(err).Class != failure.Permanent || len(w.calls()) != 1 {
		t.Errorf("read beside the prefix: %v, %d calls", err, len(w.calls()))
	}
}
