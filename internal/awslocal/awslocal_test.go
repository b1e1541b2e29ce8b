package awslocal_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudfront"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// world is a server with one customer, and clients for it.
type world struct {
	*awslocal.Server
	t        *testing.T
	http     *http.Client
	keys     awslocal.Credentials // the CMS's own
	customer awslocal.Customer
}

func newWorld(t *testing.T, config awslocal.Config, customer awslocal.Customer) *world {
	t.Helper()
	t.Parallel()
	server, err := awslocal.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	if customer.Bucket == "" {
		customer.Bucket = "alpha-prod-assets"
	}
	w := &world{Server: server, t: t, http: &http.Client{Transport: transport}}
	if pool := server.CertPool(); pool != nil {
		transport.TLSClientConfig.RootCAs = pool
	}
	w.customer = must(server.AddCustomer(customer))
	w.keys = must(server.AddUser(awslocal.User{}))
	return w
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// check fails the test unless the error is AWS's of that code; an empty code
// wants success.
func check(t *testing.T, err error, code string) {
	t.Helper()
	if got := codeOf(err); got != code {
		t.Errorf("got %q (%v), want %q", got, err, code)
	}
}

func codeOf(err error) string {
	var api smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &api):
		return api.ErrorCode()
	}
	return err.Error()
}

func (w *world) config(keys awslocal.Credentials) aws.Config {
	return aws.Config{
		Region:       w.customer.Region,
		BaseEndpoint: aws.String(w.Endpoint()),
		HTTPClient:   w.http,
		Credentials:  credentials.NewStaticCredentialsProvider(keys.AccessKeyID, keys.SecretAccessKey, keys.SessionToken),
		Retryer:      func() aws.Retryer { return aws.NopRetryer{} },
	}
}

func (w *world) s3(keys awslocal.Credentials) *s3.Client {
	return s3.NewFromConfig(w.config(keys), func(o *s3.Options) { o.UsePathStyle = true })
}

func (w *world) sts(keys awslocal.Credentials) *sts.Client { return sts.NewFromConfig(w.config(keys)) }

func (w *world) cloudfront(keys awslocal.Credentials) *cloudfront.Client {
	config := w.config(keys)
	config.Region = "us-east-1"
	return cloudfront.NewFromConfig(config)
}

// assume takes the customer's role, narrowed by a session policy if given.
func (w *world) assume(policy string) awslocal.Credentials {
	w.t.Helper()
	in := &sts.AssumeRoleInput{
		RoleArn: &w.customer.RoleARN, ExternalId: &w.customer.ExternalID, RoleSessionName: aws.String("ownbucket-test"),
	}
	if policy != "" {
		in.Policy = &policy
	}
	out, err := w.sts(w.keys).AssumeRole(w.t.Context(), in)
	if err != nil {
		w.t.Fatal(err)
	}
	return awslocal.Credentials{
		AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken,
	}
}

// session is an S3 client as the customer's role.
func (w *world) session() *s3.Client { return w.s3(w.assume("")) }

func (w *world) put(client *s3.Client, key, body string, change ...func(*s3.PutObjectInput)) (string, error) {
	in := &s3.PutObjectInput{Bucket: &w.customer.Bucket, Key: &key, Body: bytes.NewReader([]byte(body))}
	for _, f := range change {
		f(in)
	}
	out, err := client.PutObject(context.Background(), in)
	if err != nil {
		return "", err
	}
	return *out.ETag, nil
}

// source is a COPY's source as a caller must encode it.
func (w *world) source(key string) *string {
	var b bytes.Buffer
	for _, c := range []byte(w.customer.Bucket + "/" + key) {
		if c == '/' || c == '-' || 'a' <= c && c <= 'z' {
			b.WriteByte(c)
			continue
		}
		b.WriteString("%" + string("0123456789ABCDEF"[c>>4]) + string("0123456789ABCDEF"[c&15]))
	}
	return aws.String(b.String())
}

func (w *world) copy(client *s3.Client, from, to string, change ...func(*s3.CopyObjectInput)) error {
	in := &s3.CopyObjectInput{Bucket: &w.customer.Bucket, Key: &to, CopySource: w.source(from)}
	for _, f := range change {
		f(in)
	}
	_, err := client.CopyObject(context.Background(), in)
	return err
}

func (w *world) content(key string) string {
	w.t.Helper()
	_, content, err := w.GetDirect(w.customer.Bucket, key)
	if errors.Is(err, awslocal.ErrNoObject) {
		return "(none)"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return string(content)
}

func readAll(t *testing.T, from io.ReadCloser) string {
	t.Helper()
	defer from.Close()
	content, err := io.ReadAll(from)
	if err != nil {
		t.Error(err)
	}
	return string(content)
}
