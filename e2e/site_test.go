package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/e2e/servers"
	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// site is a stand-in with one customer on it.
type site struct {
	clouds
	account
	// owner may do everything in the bucket: it looks, and is the stranger.
	owner *s3.Client
	// cloud is set where the stand-in is our own.
	cloud *cloud
}

const (
	siteBucket = "customer-bucket"
	sitePrefix = "media/path"
)

// ownSite is on our own stand-in.
func ownSite(t testing.TB) *site {
	t.Helper()
	c := startCloud(t)
	customer := c.customer(t, siteBucket, sitePrefix)
	owner, err := c.AddUser(awslocal.User{Name: "owner", Account: strings.Split(customer.RoleARN, ":")[4]})
	if err != nil {
		t.Fatal(err)
	}
	client := s3.New(s3.Options{
		Region: region, BaseEndpoint: aws.String(c.Endpoint()), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(owner.AccessKeyID, owner.SecretAccessKey, ""),
	})
	return &site{clouds: c.clouds, account: customer, owner: client, cloud: c}
}

// motoSite is on moto, where user and role are made as in AWS.
func motoSite(t testing.TB) *site {
	t.Helper()
	site, _ := newMotoSite(t)
	return site
}

// checkedMotoSite also checks signatures, external ID and policies.
func checkedMotoSite(t testing.TB) *site {
	t.Helper()
	site, server := newMotoSite(t)
	server.EnforceIAM(t)
	return site
}

func newMotoSite(t testing.TB) (*site, *servers.MotoServer) {
	t.Helper()
	server := servers.Moto(t)
	server.CreateBucket(t, siteBucket)
	us := server.CreateUser(t, "cms", assumeAnyRole)
	const externalID = "shared-with-the-customer-alone"
	role := server.CreateRole(t, "customer", `{"Version":"2012-10-17","Statement":[{
		"Effect":"Allow","Action":"sts:AssumeRole",
		"Principal":{"AWS":"arn:aws:iam::`+servers.MotoAccount+`:user/cms"},
		"Condition":{"StringEquals":{"sts:ExternalId":"`+externalID+`"}}}]}`,
		awslocal.CustomerPolicy(siteBucket, sitePrefix))
	// moto looks DeleteObjects up as DeleteObject of the bucket itself, which
	// in AWS allows nothing.
	server.AllowRole(t, "customer", "delete-objects", `{"Version":"2012-10-17","Statement":[{
		"Effect":"Allow","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::`+siteBucket+`"}]}`)
	return &site{
		clouds:  clouds{S3: server.Endpoint, STS: server.Endpoint, Credentials: ours(us)},
		account: account{Bucket: siteBucket, RoleARN: role, ExternalID: externalID, Prefix: sitePrefix},
		owner:   server.S3(server.Root),
	}, server
}

func ours(c aws.Credentials) awslocal.Credentials {
	return awslocal.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey}
}

// versitySite is on versitygw, under the manual's policy.
func versitySite(t testing.TB) *site {
	t.Helper()
	return versitySiteUnder(t, awslocal.CustomerPolicy(siteBucket, sitePrefix))
}

// versitySiteUnder is on versitygw, which has users with policies but no
// AssumeRole. Our own stand-in's STS judges who may assume the role; its
// answer's keys are then exchanged for those of a versitygw user who has the
// policy. The session policy is checked for form alone: nobody enforces it here.
func versitySiteUnder(t testing.TB, policy string) *site {
	t.Helper()
	server := servers.VersityGW(t)
	server.CreateBucket(t, siteBucket)
	user := server.CreateUser(t, "customer", policy)
	c := startCloud(t)
	customer := c.customer(t, siteBucket, sitePrefix)
	at := clouds{S3: server.Endpoint, STS: exchange(t, c.Endpoint(), user), Credentials: c.Credentials}
	return &site{clouds: at, account: customer, owner: server.S3(server.Root)}
}

// exchange is an STS whose sessions have a user's keys.
func exchange(t testing.TB, sts string, user aws.Credentials) (endpoint string) {
	t.Helper()
	target, err := url.Parse(sts)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(answer *http.Response) error {
			text, err := io.ReadAll(answer.Body)
			if err != nil {
				return err
			}
			for element, value := range map[string]string{
				"AccessKeyId": user.AccessKeyID, "SecretAccessKey": user.SecretAccessKey, "SessionToken": "",
			} {
				text = regexp.MustCompile("<"+element+">[^<]*<").ReplaceAll(text, []byte("<"+element+">"+value+"<"))
			}
			answer.Body = io.NopCloser(bytes.NewReader(text))
			answer.ContentLength = int64(len(text))
			answer.Header.Set("Content-Length", strconv.Itoa(len(text)))
			return nil
		},
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	return front.URL
}

// objects are all that the bucket holds.
func (s *site) objects(t testing.TB) map[string]object {
	t.Helper()
	held := map[string]object{}
	pages := s3.NewListObjectsV2Paginator(s.owner, &s3.ListObjectsV2Input{Bucket: &s.Bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatalf("list %s: %v", s.Bucket, err)
		}
		for _, listed := range page.Contents {
			held[*listed.Key] = s.get(t, *listed.Key)
		}
	}
	return held
}

func (s *site) get(t testing.TB, key string) object {
	t.Helper()
	got, err := s.owner.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.Bucket, Key: &key})
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	defer func() { _ = got.Body.Close() }()
	sum := sha256.New()
	size, err := io.Copy(sum, got.Body)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return object{
		SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size, ContentType: aws.ToString(got.ContentType),
		CacheControl: aws.ToString(got.CacheControl), Metadata: got.Metadata,
	}
}

// put is what a stranger does.
func (s *site) put(t testing.TB, key string) object {
	t.Helper()
	_, err := s.owner.PutObject(context.WithoutCancel(t.Context()), &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: &key, Body: strings.NewReader("not yours: " + key), ContentType: aws.String("text/plain"),
		Metadata: map[string]string{"owner": "somebody"},
	})
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	return s.get(t, key)
}
