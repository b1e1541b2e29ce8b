package awslocal_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

func TestWrongChecksumLeavesTheOldObject(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	sum := sha256.Sum256([]byte("new"))
	right := base64.StdEncoding.EncodeToString(sum[:])
	zeros := func(n int) *string { return aws.String(base64.StdEncoding.EncodeToString(make([]byte, n))) }
	tests := map[string]struct {
		change func(*s3.PutObjectInput)
		code   string
	}{
		"right SHA-256":        {func(in *s3.PutObjectInput) { in.ChecksumSHA256 = &right }, ""},
		"wrong SHA-256":        {func(in *s3.PutObjectInput) { in.ChecksumSHA256 = zeros(32) }, "BadDigest"},
		"wrong CRC32":          {func(in *s3.PutObjectInput) { in.ChecksumCRC32 = zeros(4) }, "BadDigest"},
		"wrong MD5":            {func(in *s3.PutObjectInput) { in.ContentMD5 = zeros(16) }, "BadDigest"},
		"malformed MD5":        {func(in *s3.PutObjectInput) { in.ContentMD5 = aws.String("x") }, "InvalidDigest"},
		"malformed SHA-256":    {func(in *s3.PutObjectInput) { in.ChecksumSHA256 = aws.String("x") }, "InvalidRequest"},
		"metadata above 2 KiB": {func(in *s3.PutObjectInput) { in.Metadata = map[string]string{"a": strings.Repeat("x", 2048)} }, "MetadataTooLarge"},
		"metadata of 2 KiB":    {func(in *s3.PutObjectInput) { in.Metadata = map[string]string{"a": strings.Repeat("x", 2047)} }, ""},
	}
	for name, test := range tests {
		must(w.PutDirect(w.customer.Bucket, "k", []byte("old"), awslocal.Stranger{}))
		_, err := w.put(client, "k", "new", test.change)
		if got := codeOf(err); got != test.code {
			t.Errorf("%s: %v, want %q", name, err, test.code)
		}
		want := "old"
		if test.code == "" {
			want = "new"
		}
		if got := w.content("k"); got != want {
			t.Errorf("%s: the bucket holds %q", name, got)
		}
	}
}

func TestChecksumIsShownToWhoAsks(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	sum := sha256.Sum256([]byte("v"))
	want := base64.StdEncoding.EncodeToString(sum[:])
	_, err := w.put(client, "k", "v", func(in *s3.PutObjectInput) { in.ChecksumSHA256 = &want })
	check(t, err, "")
	check(t, w.copy(client, "k", "l"), "")
	for _, key := range []string{"k", "l"} {
		asked, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &w.customer.Bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
		check(t, err, "")
		if aws.ToString(asked.ChecksumSHA256) != want {
			t.Errorf("%s: %v", key, asked.ChecksumSHA256)
		}
		silent, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &w.customer.Bucket, Key: &key})
		check(t, err, "")
		if silent.ChecksumSHA256 != nil {
			t.Errorf("%s: a checksum that nobody asked for", key)
		}
	}
}

func TestAbortedBodyLeavesTheOldObject(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Options: awslocal.BucketOptions{
		Policy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"*"}}`,
	}})
	must(w.PutDirect(w.customer.Bucket, "k", []byte("old"), awslocal.Stranger{}))
	address := must(url.Parse(w.Endpoint())).Host
	conn := must(net.Dial("tcp", address))
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /%s/k HTTP/1.1\r\nHost: %s\r\nContent-Length: 100000\r\n\r\n%s", w.customer.Bucket, address, strings.Repeat("x", 90_000))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	res := must(http.ReadResponse(bufio.NewReader(conn), nil))
	defer res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d", res.StatusCode)
	}
	if got := w.content("k"); got != "old" {
		t.Errorf("the bucket holds %d bytes", len(got))
	}
}

func TestLargeObjectsLieOnDiskUntilNobodyHoldsThem(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, awslocal.Config{Dir: dir}, awslocal.Customer{})
	client := w.session()
	files := func() int { return len(must(os.ReadDir(dir))) }
	big := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(big)
	_, err := w.put(client, "big", string(big))
	check(t, err, "")
	check(t, w.copy(client, "big", "copy"), "")
	if files() != 1 {
		t.Errorf("%d files for one content", files())
	}
	got, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("copy"), Range: aws.String("bytes=1000000-2000000")})
	check(t, err, "")
	w.DeleteDirect(w.customer.Bucket, "big")
	w.DeleteDirect(w.customer.Bucket, "copy")
	if body := readAll(t, got.Body); body != string(big[1000000:2000001]) {
		t.Errorf("%d bytes came back changed", len(body))
	}
	if files() != 0 {
		t.Errorf("%d files for no object", files())
	}
}

func TestCloseRemovesWhatTheServerMade(t *testing.T) {
	t.Parallel()
	server := must(awslocal.Start(awslocal.Config{}))
	check(t, server.CreateBucket("bucket", awslocal.BucketOptions{}), "")
	object := must(server.PutDirectFrom("bucket", "k", io.LimitReader(zeros{}, 1<<20), awslocal.Stranger{}))
	must(object.Open()).Close()
	server.Close()
	server.Close()
	if _, err := object.Open(); !os.IsNotExist(err) {
		t.Errorf("the object's file is still there: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestCopyReplacesOrKeepsMetadata(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	must(w.PutDirect(w.customer.Bucket, "k", []byte("v"), awslocal.Stranger{
		ContentType: "image/png", Metadata: map[string]string{"a": "1", "b": "2"}, ETag: `"multipart-2"`,
	}))
	check(t, w.copy(client, "k", "kept"), "")
	check(t, w.copy(client, "k", "replaced", func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.ContentType, in.Metadata = types.MetadataDirectiveReplace, aws.String("image/gif"), map[string]string{"a": "3"}
	}), "")
	check(t, w.copy(client, "k", "k", func(in *s3.CopyObjectInput) { in.MetadataDirective = types.MetadataDirectiveReplace }), "")
	type seen struct {
		Key, ContentType, ETag string
		Metadata               map[string]string
	}
	var got []seen
	for _, o := range w.Objects(w.customer.Bucket) {
		got = append(got, seen{o.Key, o.ContentType, o.ETag, o.Metadata})
	}
	const md5OfV = `"9e3669d19b675bd57058fd4664205d2a"`
	want := []seen{
		{"k", "binary/octet-stream", md5OfV, map[string]string{}},
		{"kept", "image/png", md5OfV, map[string]string{"a": "1", "b": "2"}},
		{"replaced", "image/gif", md5OfV, map[string]string{"a": "3"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestListingPages(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	for _, key := range []string{"b/1", "a", "b/2", "b/c/3", "bb", "c"} {
		must(w.PutDirect(w.customer.Bucket, key, nil, awslocal.Stranger{}))
	}
	w.DeleteDirect(w.customer.Bucket, "c")
	tests := map[string]struct {
		in   s3.ListObjectsV2Input
		want []string
	}{
		"all":                {s3.ListObjectsV2Input{}, []string{"a", "b/1", "b/2", "b/c/3", "bb"}},
		"in pages of two":    {s3.ListObjectsV2Input{MaxKeys: aws.Int32(2)}, []string{"a", "b/1", "|", "b/2", "b/c/3", "|", "bb"}},
		"a directory":        {s3.ListObjectsV2Input{Prefix: aws.String("b/")}, []string{"b/1", "b/2", "b/c/3"}},
		"after a key":        {s3.ListObjectsV2Input{StartAfter: aws.String("b/1")}, []string{"b/2", "b/c/3", "bb"}},
		"after no key":       {s3.ListObjectsV2Input{StartAfter: aws.String("b/11")}, []string{"b/2", "b/c/3", "bb"}},
		"by directory":       {s3.ListObjectsV2Input{Delimiter: aws.String("/")}, []string{"a", "bb", "b/"}},
		"one directory each": {s3.ListObjectsV2Input{Delimiter: aws.String("/"), MaxKeys: aws.Int32(1)}, []string{"a", "|", "b/", "|", "bb"}},
		"nothing":            {s3.ListObjectsV2Input{Prefix: aws.String("zzz")}, nil},
	}
	for name, test := range tests {
		test.in.Bucket = &w.customer.Bucket
		var got []string
		for pages := s3.NewListObjectsV2Paginator(client, &test.in); pages.HasMorePages(); {
			page, err := pages.NextPage(t.Context())
			check(t, err, "")
			if got != nil {
				got = append(got, "|")
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
			}
			for _, p := range page.CommonPrefixes {
				got = append(got, *p.Prefix)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestPublicBucketIsDeliveredUnderItsDomain(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Options: awslocal.BucketOptions{Public: true, Domains: []string{"media.example.com"}}})
	private := "private"
	check(t, w.CreateBucket(private, awslocal.BucketOptions{}), "")
	must(w.PutDirect(w.customer.Bucket, "media/a b+é.png", []byte("picture"), awslocal.Stranger{ContentType: "image/png"}))
	must(w.PutDirect(private, "k", nil, awslocal.Stranger{}))
	tests := []struct {
		host, path string
		status     int
	}{
		{"", "/" + w.customer.Bucket + "/media/a%20b%2B%C3%A9.png", 200},
		{"media.example.com", "/media/a%20b%2B%C3%A9.png", 200},
		{w.customer.Bucket + ".s3.us-east-1.amazonaws.com", "/media/a%20b%2B%C3%A9.png", 200},
		{w.customer.Bucket + ".localhost", "/media/a%20b%2B%C3%A9.png", 200},
		{"media.example.com", "/media/missing.png", 403},
		{"", "/" + private + "/k", 403},
		{"", "/" + w.customer.Bucket, 403},
	}
	for _, test := range tests {
		req := must(http.NewRequest(http.MethodGet, w.Endpoint()+test.path, nil))
		req.Host = test.host
		res, err := w.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body := readAll(t, res.Body)
		if res.StatusCode != test.status || test.status == 200 && body != "picture" {
			t.Errorf("%s%s: %d %s", test.host, test.path, res.StatusCode, body)
		}
	}
}

func TestBucketOfAnotherRegionTellsItsOwn(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Region: "ap-northeast-1"})
	keys := w.assume("")
	here := w.s3(keys)
	location, err := here.GetBucketLocation(t.Context(), &s3.GetBucketLocationInput{Bucket: &w.customer.Bucket})
	check(t, err, "")
	if location.LocationConstraint != "ap-northeast-1" {
		t.Errorf("location %s", location.LocationConstraint)
	}
	config := w.config(keys)
	config.Region = "us-east-1"
	elsewhere := s3.NewFromConfig(config, func(o *s3.Options) { o.UsePathStyle = true })
	_, err = w.put(elsewhere, "k", "v")
	check(t, err, "PermanentRedirect")
	raw := signed{keys: keys, region: "us-east-1", at: time.Now(), tamper: func(*http.Request) {}}
	if status, code := w.send(raw); status != 301 || code != "PermanentRedirect" {
		t.Errorf("%d %s", status, code)
	}
}

func TestVirtualHostStyleReachesTheSameObjects(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	host := must(url.Parse(w.Endpoint())).Host
	w.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, host)
	}
	config := w.config(w.assume(""))
	config.BaseEndpoint = aws.String("http://localhost")
	client := s3.NewFromConfig(config)
	_, err := w.put(client, "media/k é", "v")
	check(t, err, "")
	if got := w.content("media/k é"); got != "v" {
		t.Error(got)
	}
}

func TestRangesAndConditionsOfReads(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	etag, err := w.put(client, "k", "0123456789")
	check(t, err, "")
	tests := []struct{ spec, want, code string }{
		{"bytes=0-0", "0", ""},
		{"bytes=2-4", "234", ""},
		{"bytes=7-", "789", ""},
		{"bytes=-2", "89", ""},
		{"bytes=5-100", "56789", ""},
		{"bytes=4-2", "0123456789", ""},
		{"bytes=10-", "", "InvalidRange"},
	}
	for _, test := range tests {
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k"), Range: &test.spec})
		if codeOf(err) != test.code {
			t.Errorf("%s: %v", test.spec, err)
		}
		if err == nil {
			if got := readAll(t, out.Body); got != test.want {
				t.Errorf("%s: %q, want %q", test.spec, got, test.want)
			}
		}
	}
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k"), IfMatch: aws.String(`"x"`)})
	check(t, err, "PreconditionFailed")
	_, err = client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k"), IfNoneMatch: &etag})
	check(t, err, "NotModified")
}
