package bucket_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// customer is an AWS account set up by the manual, with its policy enforced.
type customer struct {
	*awslocal.Server
	awslocal.Customer
	pool *bucket.Pool
}

func newCustomer(t *testing.T, change ...func(*awslocal.Config, *awslocal.Customer)) *customer {
	t.Helper()
	config, c := awslocal.Config{}, awslocal.Customer{Bucket: "alpha", Region: "ap-northeast-1", Prefix: "media"}
	for _, f := range change {
		f(&config, &c)
	}
	server, err := awslocal.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	if c, err = server.AddCustomer(c); err != nil {
		t.Fatal(err)
	}
	keys, err := server.AddUser(awslocal.User{})
	if err != nil {
		t.Fatal(err)
	}
	options := bucket.Options{AWS: aws.Config{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(server.Endpoint()),
		Credentials:  credentials.NewStaticCredentialsProvider(keys.AccessKeyID, keys.SecretAccessKey, ""),
	}}
	if roots := server.CertPool(); roots != nil {
		options.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	}
	p, err := bucket.NewPool(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	return &customer{server, c, p}
}

func overTLS(config *awslocal.Config, _ *awslocal.Customer) { config.TLS = true }

// everything is a role's policy that leaves all limits to the session's.
const everything = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

func (c *customer) account() bucket.Account {
	return bucket.Account{
		ServiceID: service, Bucket: c.Bucket, Region: c.Region,
		RoleARN: c.RoleARN, ExternalID: c.ExternalID, Prefix: c.Prefix,
	}
}

func (c *customer) open(t *testing.T, change ...func(*bucket.Account)) *bucket.Bucket {
	t.Helper()
	a := c.account()
	for _, f := range change {
		f(&a)
	}
	b, err := c.pool.Bucket(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put writes a new object and returns its ETag.
func (c *customer) put(t *testing.T, b *bucket.Bucket, key, content string) string {
	t.Helper()
	in := put(stream(content), len(content))
	in.Key = key
	etag, err := b.Put(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return etag
}

func (c *customer) content(t *testing.T, key string) string {
	t.Helper()
	_, content, err := c.GetDirect(c.Bucket, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var oddNames = []string{
	"a b.png", "a+b.png", "100%.png", "%2F.png", `"quoted"'s.png`, "画像.png", "が.png", "が.png", "😀.png", "~*?$&=;:@,#[]{}|^`<>.png",
}

func TestNamesSurviveTheirWholeLifeByteForByte(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]func(*awslocal.Config, *awslocal.Customer){
		"http": func(*awslocal.Config, *awslocal.Customer) {}, "https": overTLS,
		"at the root": func(_ *awslocal.Config, c *awslocal.Customer) { c.Prefix = "" },
		"an odd prefix": func(_ *awslocal.Config, c *awslocal.Customer) {
			c.Prefix, c.Policy = "a*b?c$d/画 像", everything
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCustomer(t, setup)
			b := c.open(t)
			for _, name := range oddNames {
				key, err := bucket.Key(c.Prefix, "", name)
				if err != nil {
					t.Fatal(err)
				}
				etag := c.put(t, b, key, "hello")
				copied := key + " copied"
				if _, err := b.Copy(t.Context(), bucket.CopyInput{
					SourceKey: key, SourceETag: etag, Key: copied, ContentType: "text/plain",
					Stamp: stamp, Condition: bucket.Condition{IfNoneMatch: true},
				}); err != nil {
					t.Fatal(err)
				}
				page, _, err := b.List(t.Context(), key, "")
				if err != nil || len(page) != 2 || page[0].Key != key || page[1].Key != copied {
					t.Errorf("%q lists as %+v, %v", key, page, err)
				}
				if got := c.content(t, copied); got != "hello" {
					t.Errorf("%q: copied %q", key, got)
				}
				seen, err := b.Head(t.Context(), copied, false)
				if err != nil || !seen.HasStamp("microcms", stamp) || seen.ContentType != "text/plain" {
					t.Errorf("%q: %+v, %v", key, seen, err)
				}
				if err := b.Delete(t.Context(), key, etag); err != nil {
					t.Error(err)
				}
				if failed, err := b.DeleteMany(t.Context(), []string{copied}); err != nil || len(failed) != 0 {
					t.Errorf("%v %v", failed, err)
				}
			}
			if keys := c.Keys(c.Bucket); len(keys) != 0 {
				t.Errorf("left: %q", keys)
			}
			if refused := c.Refused(); len(refused) != 0 {
				t.Errorf("asked for more than was granted: %+v", refused)
			}
		})
	}
}

func TestTheChecksumKeepsDamagedUploadsOut(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]func(*awslocal.Config, *awslocal.Customer){
		"http": func(*awslocal.Config, *awslocal.Customer) {}, "https": overTLS,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCustomer(t, setup)
			b := c.open(t)
			old := c.put(t, b, "media/a", "the good older one")
			sum := sha256.Sum256([]byte("what was meant"))
			in := put(stream("what came     "), 14)
			in.Key, in.SHA256, in.Condition = "media/a", hex.EncodeToString(sum[:]), bucket.Condition{IfMatch: old}
			_, err := b.Put(t.Context(), in)
			if f := failure.Of(err); f == nil || f.Class != failure.Permanent || f.Code != failure.ChecksumMismatch {
				t.Errorf("got %v", err)
			}
			if got := c.content(t, "media/a"); got != "the good older one" {
				t.Errorf("the bucket holds %q", got)
			}
			in.Body = stream("what was meant")
			if _, err := b.Put(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			seen, err := b.Head(t.Context(), "media/a", true)
			if err != nil || seen.SHA256 != in.SHA256 || seen.Size != 14 {
				t.Errorf("%+v, %v", seen, err)
			}
		})
	}
}

func TestNothingIsOverwrittenOrDeletedThatIsNotMeant(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	b := c.open(t)
	source := c.put(t, b, "media/source", "source")
	if _, err := c.PutDirect(c.Bucket, "media/theirs", []byte("theirs"), awslocal.Stranger{}); err != nil {
		t.Fatal(err)
	}
	writes := map[string]func(key string, cond bucket.Condition) error{
		"put": func(key string, cond bucket.Condition) error {
			in := put(stream("x"), 1)
			in.Key, in.Condition = key, cond
			_, err := b.Put(t.Context(), in)
			return err
		},
		"copy": func(key string, cond bucket.Condition) error {
			_, err := b.Copy(t.Context(), bucket.CopyInput{SourceKey: "media/source", SourceETag: source, Key: key, Stamp: stamp, Condition: cond})
			return err
		},
	}
	for name, write := range writes {
		if err := write("media/theirs", bucket.Condition{IfNoneMatch: true}); !errors.Is(err, bucket.ErrConditionFailed) || errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("%s where something is: %v", name, err)
		}
		if err := write("media/theirs", bucket.Condition{IfMatch: source}); !errors.Is(err, bucket.ErrConditionFailed) || errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("%s over another: %v", name, err)
		}
		if err := write("media/none", bucket.Condition{IfMatch: source}); !errors.Is(err, bucket.ErrConditionFailed) || !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("%s over nothing: %v", name, err)
		}
	}
	if err := b.Delete(t.Context(), "media/theirs", source); !errors.Is(err, bucket.ErrConditionFailed) {
		t.Errorf("delete of another: %v", err)
	}
	if err := b.Delete(t.Context(), "media/none", source); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("delete of nothing: %v", err)
	}

	from := func(key, etag string) error {
		_, err := b.Copy(t.Context(), bucket.CopyInput{SourceKey: key, SourceETag: etag, Key: "media/new", Stamp: stamp, Condition: bucket.Condition{IfNoneMatch: true}})
		return err
	}
	if err := from("media/none", source); !errors.Is(err, bucket.ErrSourceNotFound) {
		t.Errorf("copy of nothing: %v", err)
	}
	if err := from("media/theirs", source); !errors.Is(err, bucket.ErrSourceChanged) {
		t.Errorf("copy of another: %v", err)
	}
	if got := c.content(t, "media/theirs"); got != "theirs" || len(c.Keys(c.Bucket)) != 2 {
		t.Errorf("theirs holds %q; keys %q", got, c.Keys(c.Bucket))
	}
}

func TestAWholeDirectoryIsListedAndDeletedPageByPage(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	want := map[string]bool{"media/\x01": true, "media/a\nb": true}
	for i := range 1500 {
		want[fmt.Sprintf("media/%04d ム+&.png", i)] = true
	}
	for key := range want {
		if _, err := c.PutDirect(c.Bucket, key, nil, awslocal.Stranger{}); err != nil {
			t.Fatal(err)
		}
	}
	b := c.open(t)
	for token, done := "", false; !done; done = token == "" {
		page, next, err := b.List(t.Context(), "media/", token)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, o := range page {
			if !want[o.Key] {
				t.Errorf("%q was listed twice, or isn't there", o.Key)
			}
			delete(want, o.Key)
			keys = append(keys, o.Key)
		}
		if failed, err := b.DeleteMany(t.Context(), keys); err != nil || len(failed) != 0 {
			t.Fatalf("%v, %v", failed, err)
		}
		token = next
	}
	if left := c.Keys(c.Bucket); len(left)+len(want) != 0 {
		t.Errorf("left %q, never listed %v", left, want)
	}
}

func TestALostAnswerIsTransientAndTheRetrysConditionSpeaks(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	b := c.open(t)
	c.Inject(awslocal.Rule{API: "s3:PutObject", Times: 1, AfterEffect: true, Reset: true})
	in := put(stream("x"), 1)
	in.Key = "media/a"
	_, err := b.Put(t.Context(), in)
	if f := failure.Of(err); f == nil || f.Class != failure.Transient {
		t.Errorf("got %v", err)
	}
	in.Body = bytes.NewReader([]byte("x"))
	if _, err := b.Put(t.Context(), in); !errors.Is(err, bucket.ErrConditionFailed) {
		t.Errorf("the second time: %v", err)
	}
	seen, err := b.Head(t.Context(), "media/a", false)
	if err != nil || !seen.HasStamp("microcms", stamp) {
		t.Errorf("not known as ours: %+v, %v", seen, err)
	}
}

func TestASlowBucketIsToldFromABrokenOne(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	b := c.open(t)
	for _, tc := range []struct {
		rule awslocal.Rule
		code string
	}{
		{awslocal.Rule{Status: 503, Code: "SlowDown"}, failure.Throttled},
		{awslocal.Rule{Status: 500, Code: "InternalError"}, failure.ServerError},
		{awslocal.Rule{Status: 409, Code: "ConditionalRequestConflict"}, bucket.Conflict},
		{awslocal.Rule{Status: 200, Body: aws.String("")}, failure.ServerError},
	} {
		tc.rule.API = "s3:PutObject"
		fault := c.Inject(tc.rule)
		in := put(stream("x"), 1)
		_, err := b.Put(t.Context(), in)
		if f := failure.Of(err); f == nil || f.Class != failure.Transient || f.Code != tc.code {
			t.Errorf("%s: %v", tc.code, err)
		}
		if fault.Hits() != 1 {
			t.Errorf("%s: a stream was sent %d times", tc.code, fault.Hits())
		}
		fault.Remove()
	}
}

func TestALargeStreamIsUploadedWithoutBeingHeld(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]func(*awslocal.Config, *awslocal.Customer){
		"http": func(*awslocal.Config, *awslocal.Customer) {}, "https": overTLS,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 24 << 20
			c := newCustomer(t, setup)
			hash := sha256.New()
			body := io.TeeReader(io.LimitReader(&pattern{}, size), hash)
			in := put(struct{ io.Reader }{body}, size)
			in.Key = "media/large"
			if _, err := c.open(t).Put(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			if o := c.Objects(c.Bucket)[0]; o.Size != size || o.SHA256 != hex.EncodeToString(hash.Sum(nil)) {
				t.Errorf("stored %d bytes, %s", o.Size, o.SHA256)
			}
		})
	}
}

type pattern struct{ n byte }

func (r *pattern) Read(p []byte) (int, error) {
	for i := range p {
		r.n = r.n*31 + 7
		p[i] = r.n
	}
	return len(p), nil
}
