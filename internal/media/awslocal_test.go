package media_test

import (
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func TestStagingUnderRealPermissions(t *testing.T) {
	t.Parallel()
	server, err := awslocal.Start(awslocal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	const readOnly = `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::staging/open/*"},
		{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::staging"}]}`
	worker := newClient(t, server, awslocal.User{Policy: readOnly})
	if err := server.CreateBucket("staging", awslocal.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	const key = "open/a b+c%20?#.jpg"
	for _, key := range []string{key, "closed/a.jpg"} {
		if _, err := server.PutDirect("staging", key, []byte(key), awslocal.Stranger{}); err != nil {
			t.Fatal(err)
		}
	}
	sources := newSources(t, media.Options{StagingBuckets: []string{"staging", "not-made"}, S3: worker})

	got, _, err := receive(t, sources, "s3://staging/"+key, sized(len(key)), sumOf([]byte(key)))
	if err != nil || string(got) != key {
		t.Errorf("got %q, %v", got, err)
	}
	_, _, err = receive(t, sources, "s3://staging/open/missing", nil, "")
	wantFailure(t, err, failure.Permanent, failure.SourceGone)
	_, _, err = receive(t, sources, "s3://staging/closed/a.jpg", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeDenied)
	_, _, err = receive(t, sources, "s3://not-made/a.jpg", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeDenied)
}

func newClient(t testing.TB, server *awslocal.Server, user awslocal.User) *s3.Client {
	t.Helper()
	keys, err := server.AddUser(user)
	if err != nil {
		t.Fatal(err)
	}
	connections := &http.Transport{}
	t.Cleanup(connections.CloseIdleConnections)
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(server.Endpoint()), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(keys.AccessKeyID, keys.SecretAccessKey, ""),
		HTTPClient:  &http.Client{Transport: connections},
	})
}
