package bucket_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// stream hides everything but Read, like a download.
func stream(s string) io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }

func put(body io.Reader, size int) bucket.PutInput {
	return bucket.PutInput{
		Key: "media/a b+ム.png", Body: body, Size: int64(size), ContentType: "image/png",
		Stamp: stamp, Condition: bucket.Condition{IfNoneMatch: true},
	}
}

func TestPutSendsContentMetadataAndConditionAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	b := w.bucket(t, func(a *bucket.Account) { a.Owner = "123456789012" })
	in := put(stream("hello"), 5)
	in.Condition = bucket.Condition{IfMatch: `"old"`}
	etag, err := b.Put(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if etag != `"e1"` {
		t.Errorf("ETag %s", etag)
	}
	got := w.only(t)
	if got.method != http.MethodPut || got.path != "/alpha/media/a%20b%2B%E3%83%A0.png" || got.body != "hello" {
		t.Errorf("sent %s %s %q", got.method, got.path, got.body)
	}
	want := map[string]string{
		"Content-Type":                 "image/png",
		"Content-Length":               "5",
		"If-Match":                     `"old"`,
		"If-None-Match":                "",
		"X-Amz-Meta-Upload-Source":     "microcms",
		"X-Amz-Meta-Microcms-Service":  service,
		"X-Amz-Meta-Microcms-Version":  "20250812154922",
		"X-Amz-Meta-Microcms-Status":   "public",
		"X-Amz-Expected-Bucket-Owner":  "123456789012",
		"X-Amz-Security-Token":         "their-token",
		"X-Amz-Content-Sha256":         "UNSIGNED-PAYLOAD",
		"Cache-Control":                "",
		"X-Amz-Acl":                    "",
		"X-Amz-Tagging":                "",
		"X-Amz-Server-Side-Encryption": "",
	}
	sent := map[string]string{}
	for name := range want {
		sent[name] = got.header.Get(name)
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Error(diff)
	}
}

func TestPutSendsTheChecksumThatS3ComparesWith(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("hello"))
	for name, body := range map[string]io.Reader{"stream": stream("hello"), "file": strings.NewReader("hello")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, stored)
			in := put(body, 5)
			in.SHA256 = hex.EncodeToString(sum[:])
			if _, err := w.bucket(t).Put(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			got := w.only(t)
			if want := base64.StdEncoding.EncodeToString(sum[:]); got.header.Get("X-Amz-Checksum-Sha256") != want {
				t.Errorf("checksum %q", got.header)
			}
			for name := range got.header {
				if strings.HasPrefix(name, "X-Amz-Checksum-") && name != "X-Amz-Checksum-Sha256" {
					t.Errorf("a second checksum: %s", name)
				}
			}
			if alg := got.header.Get("X-Amz-Sdk-Checksum-Algorithm"); alg != "SHA256" && alg != "" {
				t.Errorf("algorithm %q", alg)
			}
		})
	}
}

func TestPutOverTLSChecksAStreamOnItsWay(t *testing.T) {
	t.Parallel()
	w := &wire{s3: stored, sts: assumeRole}
	w.Server = httptest.NewTLSServer(w)
	t.Cleanup(w.Close)
	p := w.pool(t, func(o *bucket.Options) { o.Transport = w.Client().Transport })
	b, err := p.Bucket(account)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), put(stream("hello"), 5)); err != nil {
		t.Fatal(err)
	}
	got := w.only(t)
	if got.header.Get("X-Amz-Decoded-Content-Length") != "5" || !strings.Contains(got.body, "x-amz-checksum-crc32:") {
		t.Errorf("no trailing checksum: %q %q", got.header, got.body)
	}
}

func TestPutOfAnEmptyFileSendsItsLength(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	if _, err := w.bucket(t).Put(t.Context(), put(stream(""), 0)); err != nil {
		t.Fatal(err)
	}
	if got := w.only(t).header.Get("Content-Length"); got != "0" {
		t.Errorf("Content-Length %q", got)
	}
}

func TestPutReturnsTheVerdictOfItsSource(t *testing.T) {
	t.Parallel()
	verdict := failure.New(failure.Permanent, failure.SizeMismatch, "4 bytes announced")
	for name, in := range map[string]bucket.PutInput{
		"midway":    put(io.MultiReader(stream("hel"), errReader{verdict}), 5),
		"at once":   put(errReader{verdict}, 5),
		"empty":     put(errReader{verdict}, 0),
		"large":     put(io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), errReader{verdict}), 4<<20),
		"from disk": put(seekableErr{strings.NewReader("hel"), verdict}, 5),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, stored)
			_, err := w.bucket(t).Put(t.Context(), in)
			if err != error(verdict) {
				t.Errorf("got %v, want the source's own verdict", err)
			}
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type seekableErr struct {
	*strings.Reader
	err error
}

func (r seekableErr) Read(p []byte) (int, error) {
	if n, err := r.Reader.Read(p); err == nil {
		return n, nil
	}
	return 0, r.err
}

func (r seekableErr) WriteTo(io.Writer) (int64, error) { return 0, r.err }

func TestPutStoresNothingWhoseLengthIsNotTheOneAnnounced(t *testing.T) {
	t.Parallel()
	endless := func() io.Reader { return &counted{} }
	for name, tc := range map[string]struct {
		body io.Reader
		size int
	}{
		"short":       {stream("hell"), 5},
		"long":        {stream("hello!"), 5},
		"not empty":   {stream("h"), 0},
		"endless":     {endless(), 3 << 20},
		"short file":  {strings.NewReader("hell"), 5},
		"long file":   {strings.NewReader("hello!"), 5},
		"byte by one": {iotest.OneByteReader(strings.NewReader("hello!")), 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, stored)
			_, err := w.bucket(t).Put(t.Context(), put(tc.body, tc.size))
			if f := failure.Of(err); f == nil || f.Class != failure.Permanent || f.Code != failure.SizeMismatch {
				t.Errorf("got %v", err)
			}
			if calls := w.calls(); len(calls) != 0 { // only what came whole is recorded
				t.Errorf("stored %q", calls[0].body)
			}
		})
	}
}

func TestPutSendsAFileFromWhereItStands(t *testing.T) {
	t.Parallel()
	w := newWire(t, each(t, s3Error(500, "InternalError", ""), stored))
	file := strings.NewReader("skipped hello")
	if _, err := file.Seek(8, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := w.bucket(t).Put(t.Context(), put(file, 5)); err != nil {
		t.Fatal(err)
	}
	for _, call := range w.calls() {
		if call.body != "hello" {
			t.Errorf("sent %q", call.body)
		}
	}
}

func TestPutSendsAStreamOnceAndAFileAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body io.Reader
		want []string
	}{
		"stream": {stream("hello"), []string{"hello"}},
		"file":   {strings.NewReader("hello"), []string{"hello", "hello"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, each(t, s3Error(500, "InternalError", "try again"), stored))
			_, err := w.bucket(t).Put(t.Context(), put(tc.body, 5))
			if (err == nil) != (len(tc.want) == 2) {
				t.Error(err)
			}
			var bodies []string
			for _, call := range w.calls() {
				bodies = append(bodies, call.body)
			}
			if diff := cmp.Diff(tc.want, bodies); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAWriteOutsideThePrefixOrWithoutAConditionIsNeverSent(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	b := w.bucket(t)
	for _, key := range []string{"mediafoo/a", "other/a", "media", "media/", ""} {
		in := put(stream("x"), 1)
		in.Key = key
		if _, err := b.Put(t.Context(), in); err == nil {
			t.Errorf("put to %q passed", key)
		}
		if _, err := b.Copy(t.Context(), bucket.CopyInput{SourceKey: "media/a", Key: key, Condition: in.Condition}); err == nil {
			t.Errorf("copy to %q passed", key)
		}
		if err := b.Delete(t.Context(), key, `"e"`); err == nil {
			t.Errorf("delete of %q passed", key)
		}
		if _, err := b.DeleteMany(t.Context(), []string{"media/a", key}); err == nil {
			t.Errorf("delete of %q among others passed", key)
		}
	}
	for _, c := range []bucket.Condition{{}, {IfNoneMatch: true, IfMatch: "e"}} {
		in := put(stream("x"), 1)
		in.Condition = c
		if _, err := b.Put(t.Context(), in); failure.Of(err).Class != failure.Permanent {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if calls := w.calls(); len(calls) != 0 {
		t.Errorf("sent: %v", calls)
	}
}

func TestPutTellsConditionsFromDamage(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("ab", 32)
	for _, tc := range []struct {
		name          string
		answer        http.HandlerFunc
		sha256        string
		is            error
		class         failure.Class
		code          string
		alsoSeenNoKey bool
	}{
		{name: "taken", answer: s3Error(412, "PreconditionFailed", "x"), is: bucket.ErrConditionFailed, class: failure.Transient, code: bucket.ConditionFailed},
		{name: "gone", answer: s3Error(404, "NoSuchKey", "x"), is: bucket.ErrConditionFailed, class: failure.Transient, code: bucket.ConditionFailed, alsoSeenNoKey: true},
		{name: "other bytes than announced", answer: s3Error(400, "BadDigest", "x"), sha256: sum, class: failure.Permanent, code: failure.ChecksumMismatch},
		{name: "damaged on the way", answer: s3Error(400, "BadDigest", "x"), class: failure.Transient, code: failure.ServerError},
		{name: "no ETag", answer: func(http.ResponseWriter, *http.Request) {}, class: failure.Transient, code: failure.ServerError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, tc.answer)
			in := put(stream("hello"), 5)
			in.SHA256 = tc.sha256
			_, err := w.bucket(t).Put(t.Context(), in)
			f := failure.Of(err)
			if f.Class != tc.class || f.Code != tc.code || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Errorf("got %s %s: %v", f.Class, f.Code, err)
			}
			if errors.Is(err, bucket.ErrNotFound) != tc.alsoSeenNoKey {
				t.Errorf("%v: ErrNotFound: want %t", err, tc.alsoSeenNoKey)
			}
			if tc.name != "no ETag" && f.RequestID != "REQUEST1" {
				t.Errorf("request ID %q", f.RequestID)
			}
			for _, part := range []string{"PutObject", "media/a b+ム.png", "alpha", service} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q doesn't name %q", err, part)
				}
			}
		})
	}
}

func TestARefusedUploadIsNotSent(t *testing.T) {
	t.Parallel()
	w := newWire(t, nil)
	// S3 refuses by the headers alone, and hangs up.
	w.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form") {
			assumeRole(rw, r)
			return
		}
		rw.Header().Set("Connection", "close")
		s3Error(403, "AccessDenied", "no")(rw, r)
	})
	body := &counted{}
	_, err := w.bucket(t).Put(t.Context(), put(body, 5<<30))
	// Without a lock: the race detector sees a read that comes after Put.
	if body.n != 0 || failure.Of(err).Code != failure.Denied {
		t.Errorf("%d bytes were read: %v", body.n, err)
	}
}

type counted struct{ n int }

func (c *counted) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

func TestPutNeverTouchesItsSourceAfterwards(t *testing.T) {
	t.Parallel()
	w := newWire(t, nil)
	// S3 answers in the midst of the upload.
	w.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form") {
			assumeRole(rw, r)
			return
		}
		io.ReadFull(r.Body, make([]byte, 1<<20))
		s3Error(403, "AccessDenied", "no")(rw, r)
	})
	body := &counted{}
	if _, err := w.bucket(t).Put(t.Context(), put(body, 5<<30)); err == nil {
		t.Error("passed")
	}
	before := body.n
	w.Close() // which waits for the connection's end
	if body.n != before {
		t.Errorf("%d bytes were read after Put", body.n-before)
	}
}
