package awslocal_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// signed is a PUT signed by hand, so that single parts of it can be spoilt.
type signed struct {
	keys    awslocal.Credentials
	body    string
	header  http.Header
	region  string
	at      time.Time
	tamper  func(*http.Request)
	payload string
}

func (w *world) send(s signed) (status int, code string) {
	w.t.Helper()
	req := must(http.NewRequest(http.MethodPut, w.ObjectURL(w.customer.Bucket, "media/k"), strings.NewReader(s.body)))
	for name, values := range s.header {
		req.Header[name] = values
	}
	if s.payload == "" {
		sum := sha256.Sum256([]byte(s.body))
		s.payload = hex.EncodeToString(sum[:])
	}
	req.Header.Set("X-Amz-Content-Sha256", s.payload)
	keys := aws.Credentials{AccessKeyID: s.keys.AccessKeyID, SecretAccessKey: s.keys.SecretAccessKey, SessionToken: s.keys.SessionToken}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if err := signer.SignHTTP(context.Background(), keys, req, s.payload, "s3", s.region, s.at); err != nil {
		w.t.Fatal(err)
	}
	if s.tamper != nil {
		s.tamper(req)
	}
	res, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var doc struct{ Code, RequestId string }
	content := must(io.ReadAll(res.Body))
	if len(content) > 0 {
		if err := xml.Unmarshal(content, &doc); err != nil || doc.RequestId != res.Header.Get("x-amz-request-id") {
			w.t.Errorf("the answer is no error document with its request ID: %s", content)
		}
	}
	return res.StatusCode, doc.Code
}

func TestOnlyTheSignedRequestIsServed(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	keys := w.assume("")
	otherSecret, noToken, otherToken, unknown := keys, keys, keys, keys
	otherSecret.SecretAccessKey = "x"
	noToken.SessionToken = ""
	otherToken.SessionToken = "x"
	unknown.AccessKeyID = "ASIAUNKNOWN"
	now := time.Now()
	tests := []struct {
		name   string
		change func(*signed)
		status int
		code   string
	}{
		{"as signed", func(*signed) {}, 200, ""},
		{"unsigned payload", func(s *signed) { s.payload = "UNSIGNED-PAYLOAD" }, 200, ""},
		{"other secret", func(s *signed) { s.keys = otherSecret }, 403, "SignatureDoesNotMatch"},
		{"no session token", func(s *signed) { s.keys = noToken }, 403, "InvalidAccessKeyId"},
		{"other session token", func(s *signed) { s.keys = otherToken }, 400, "InvalidToken"},
		{"unknown key", func(s *signed) { s.keys = unknown }, 403, "InvalidAccessKeyId"},
		{"16 minutes old", func(s *signed) { s.at = now.Add(-16 * time.Minute) }, 403, "RequestTimeTooSkewed"},
		{"16 minutes ahead", func(s *signed) { s.at = now.Add(16 * time.Minute) }, 403, "RequestTimeTooSkewed"},
		{"14 minutes old", func(s *signed) { s.at = now.Add(-14 * time.Minute) }, 200, ""},
		{"other region", func(s *signed) { s.region = "eu-west-1" }, 301, "PermanentRedirect"},
		{"other path", func(s *signed) { s.tamper = func(r *http.Request) { r.URL.Path += "x" } }, 403, "SignatureDoesNotMatch"},
		{"other method", func(s *signed) { s.tamper = func(r *http.Request) { r.Method = http.MethodDelete } }, 403, "SignatureDoesNotMatch"},
		{"added query", func(s *signed) { s.tamper = func(r *http.Request) { r.URL.RawQuery = "acl" } }, 403, "SignatureDoesNotMatch"},
		{"added x-amz header", func(s *signed) { s.tamper = func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "b") } }, 403, "AccessDenied"},
		{"changed metadata", func(s *signed) {
			s.header = http.Header{"X-Amz-Meta-A": {"a"}}
			s.tamper = func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "b") }
		}, 403, "SignatureDoesNotMatch"},
		{"changed body", func(s *signed) {
			s.tamper = func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("BODY")) }
		}, 400, "XAmzContentSHA256Mismatch"},
		{"streaming signature that isn't served", func(s *signed) { s.payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" }, 501, "NotImplemented"},
		{"no signature", func(s *signed) {
			s.tamper = func(r *http.Request) {
				r.Header = http.Header{}
			}
		}, 403, "AccessDenied"},
	}
	for _, test := range tests {
		req := signed{keys: keys, body: "body", region: "us-east-1", at: now}
		test.change(&req)
		w.DeleteDirect(w.customer.Bucket, "media/k")
		status, code := w.send(req)
		if status != test.status || code != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, status, code, test.status, test.code)
		}
		if stored := w.content("media/k") == "body"; stored != (test.status == 200) {
			t.Errorf("%s: stored: %v", test.name, stored)
		}
	}
}

func TestCredentialsExpire(t *testing.T) {
	clock := newClock()
	w := newWorld(t, awslocal.Config{Now: clock.now}, awslocal.Customer{Distribution: "EDFDVBD6EXAMPLE"})
	keys := w.assume("")
	client := w.s3(keys)
	_, err := w.put(client, "k", "v")
	check(t, err, "")
	clock.advance(time.Hour - time.Second)
	_, err = w.put(client, "k", "v")
	check(t, err, "")
	clock.advance(time.Second)
	_, err = w.put(client, "k", "v")
	check(t, err, "ExpiredToken")
	_, err = w.sts(keys).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	check(t, err, "ExpiredToken")

	client = w.session()
	w.ExpireSessions()
	_, err = w.put(client, "k", "v")
	check(t, err, "ExpiredToken")
}

func TestStreamedBodyOverTLSIsVerifiedByItsTrailer(t *testing.T) {
	w := newWorld(t, awslocal.Config{TLS: true}, awslocal.Customer{})
	client := w.session()
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for _, algorithm := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmSha256, types.ChecksumAlgorithmCrc32c} {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &w.customer.Bucket, Key: aws.String("k"), ChecksumAlgorithm: algorithm,
			Body: io.LimitReader(bytes.NewReader(big), int64(len(big))), ContentLength: aws.Int64(int64(len(big))),
		})
		check(t, err, "")
		got, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k"), ChecksumMode: types.ChecksumModeEnabled})
		check(t, err, "")
		if body := readAll(t, got.Body); body != string(big) {
			t.Errorf("%s: %d bytes came back changed", algorithm, len(body))
		}
	}
	log := w.Log()
	if used := log[1].Header.Get("X-Amz-Content-Sha256"); used != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
		t.Errorf("the SDK sent %q: this test shows nothing", used)
	}
}

func TestTrailerMustBeThereAndRight(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	keys := w.assume("")
	const right = "x-amz-checksum-crc32:26gLsg==" // of "body"
	tests := []struct {
		name, body, length, code string
	}{
		{"right", "4\r\nbody\r\n0\r\n" + right + "\r\n\r\n", "4", ""},
		{"in two chunks", "2\r\nbo\r\n2\r\ndy\r\n0\r\n" + right + "\r\n\r\n", "4", ""},
		{"wrong sum", "4\r\nbody\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "4", "BadDigest"},
		{"no trailer", "4\r\nbody\r\n0\r\n\r\n", "4", "MalformedTrailerError"},
		{"other length", "4\r\nbody\r\n0\r\n" + right + "\r\n\r\n", "5", "IncompleteBody"},
		{"no last chunk", "4\r\nbody\r\n", "4", "IncompleteBody"},
		{"not chunked", "body", "4", "IncompleteBody"},
		{"a length that is none", "four\r\nbody\r\n", "4", "InvalidRequest"},
		{"no decoded length", "4\r\nbody\r\n0\r\n" + right + "\r\n\r\n", "", "MissingContentLength"},
	}
	for _, test := range tests {
		must(w.PutDirect(w.customer.Bucket, "media/k", []byte("old"), awslocal.Stranger{}))
		header := http.Header{"X-Amz-Trailer": {"x-amz-checksum-crc32"}}
		if test.length != "" {
			header.Set("X-Amz-Decoded-Content-Length", test.length)
		}
		_, code := w.send(signed{keys: keys, region: "us-east-1", at: time.Now(), body: test.body, header: header, payload: "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
		want := "old"
		if test.code == "" {
			want = "body"
		}
		if got := w.content("media/k"); code != test.code || got != want {
			t.Errorf("%s: %q and %q, want %q and %q", test.name, code, got, test.code, want)
		}
	}
}
