package bucket_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/bucket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	externalID = "external-id-of-the-customer"
	service    = "SERVICE#0f0e"
)

// account is a customer with everything as it should be.
var account = bucket.Account{
	ServiceID: service, Bucket: "alpha", Region: "ap-northeast-1",
	RoleARN: "arn:aws:iam::123456789012:role/Media", ExternalID: externalID, Prefix: "media",
}

var stamp = bucket.Stamp{ServiceID: service, Version: 1_755_013_762_123_456}

// seen is a request as it came over the wire.
type seen struct {
	method, path, query string
	header              http.Header
	host                string
	body                string
	form                url.Values // of an STS request
}

// wire is STS and S3 behind one address: STS lets everybody in, unless a test
// says otherwise, and S3 answers as the test says.
type wire struct {
	*httptest.Server
	sts, s3 http.HandlerFunc

	mu       sync.Mutex
	stsCalls []seen
	s3Calls  []seen
}

func newWire(t *testing.T, s3 http.HandlerFunc) *wire {
	t.Helper()
	w := &wire{s3: s3, sts: assumeRole}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Close)
	return w
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client gave up
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	s := seen{
		method: r.Method, path: r.URL.EscapedPath(), query: r.URL.RawQuery,
		header: r.Header.Clone(), host: r.Host, body: string(body),
	}
	rw.Header().Set("X-Amz-Request-Id", "REQUEST1")
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		s.form, _ = url.ParseQuery(s.body)
		w.mu.Lock()
		w.stsCalls = append(w.stsCalls, s)
		w.mu.Unlock()
		w.sts(rw, r)
		return
	}
	w.mu.Lock()
	w.s3Calls = append(w.s3Calls, s)
	w.mu.Unlock()
	w.s3(rw, r)
}

// calls are the S3 requests so far; assumed the AssumeRole requests.
func (w *wire) calls() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]seen(nil), w.s3Calls...)
}

func (w *wire) assumed() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]seen(nil), w.stsCalls...)
}

// only is the one S3 request that there must have been.
func (w *wire) only(t *testing.T) seen {
	t.Helper()
	calls := w.calls()
	if len(calls) != 1 {
		t.Fatalf("%d S3 requests, want one: %v", len(calls), calls)
	}
	return calls[0]
}

func (w *wire) pool(t *testing.T, change ...func(*bucket.Options)) *bucket.Pool {
	t.Helper()
	o := bucket.Options{AWS: aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKIAOURS", "our-secret", ""),
		BaseEndpoint: &w.URL,
	}}
	for _, c := range change {
		c(&o)
	}
	p, err := bucket.NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	return p
}

func (w *wire) bucket(t *testing.T, change ...func(*bucket.Account)) *bucket.Bucket {
	t.Helper()
	a := account
	for _, c := range change {
		c(&a)
	}
	b, err := w.pool(t).Bucket(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func assumeRole(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:x</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/Media/x</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIATHEIRS</AccessKeyId><SecretAccessKey>their-secret</SecretAccessKey>
<SessionToken>their-token</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>`)
}

// stsError is STS's refusal.
func stsError(status int, code, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>STS1</RequestId></ErrorResponse>`, code, message)
	}
}

// s3Error is S3's refusal.
func s3Error(status int, code, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, `<Error><Code>%s</Code><Message>%s</Message><RequestId>REQUEST1</RequestId></Error>`, code, message)
		}
	}
}

// stored answers a PUT, and a COPY with the XML that it needs.
func stored(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"e1"`)
	if r.Header.Get("X-Amz-Copy-Source") != "" {
		fmt.Fprint(w, `<CopyObjectResult><ETag>"c1"</ETag></CopyObjectResult>`)
	}
}

// each answers requests in turn.
func each(t *testing.T, answers ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if len(answers) == 0 {
			mu.Unlock()
			t.Errorf("an unexpected request: %s %s", r.Method, r.URL)
			w.WriteHeader(http.StatusTeapot)
			return
		}
		answer := answers[0]
		answers = answers[1:]
		mu.Unlock()
		answer(w, r)
	}
}

// listing is a page of LIST with these keys, as EncodingType=url spells them.
func listing(next string, encodedKeys ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>%t</IsTruncated>`, next != "")
		if next != "" {
			fmt.Fprintf(w, `<NextContinuationToken>%s</NextContinuationToken>`, next)
		}
		for _, key := range encodedKeys {
			fmt.Fprintf(w, `<Contents><Key>%s</Key><ETag>"e1"</ETag><Size>3</Size></Contents>`, key)
		}
		fmt.Fprint(w, `</ListBucketResult>`)
	}
}
