package servers_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudfront"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/ownbucket/ownbucket/e2e/servers"
)

// onlyBelow is the manual's policy for one bucket and prefix.
const onlyBelow = `{"Version": "2012-10-17", "Statement": [
	{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::media"},
	{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": "arn:aws:s3:::media/cms/*"}]}`

func put(t *testing.T, client *s3.Client, key string) error {
	t.Helper()
	_, err := client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("media"), Key: &key, Body: strings.NewReader("hello"),
	})
	return err
}

func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	// By status, since moto's STS denies in a form that the SDK can't read.
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.HTTPStatusCode() != http.StatusForbidden {
		t.Errorf("%s: %v, want status 403", what, err)
	}
}

func TestVersityGWEnforcesAUsersPolicy(t *testing.T) {
	t.Parallel()
	server := servers.VersityGW(t)
	server.CreateBucket(t, "media")
	user := server.S3(server.CreateUser(t, "customer", onlyBelow))
	if err := put(t, user, "cms/日本語 +%.txt"); err != nil {
		t.Errorf("below the prefix: %v", err)
	}
	wantDenied(t, "outside of the prefix", put(t, user, "other.txt"))
	_, err := user.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: aws.String("media")})
	wantDenied(t, "delete the bucket", err)
}

func TestMotoChecksWhoAssumesARoleAndWhatItMayDo(t *testing.T) {
	t.Parallel()
	server := servers.Moto(t)
	server.CreateBucket(t, "media")
	cms := server.CreateUser(t, "cms", `{"Version": "2012-10-17", "Statement": [
		{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}]}`)
	role := server.CreateRole(t, "customer", `{"Version": "2012-10-17", "Statement": [
		{"Effect": "Allow", "Action": "sts:AssumeRole",
		 "Principal": {"AWS": "arn:aws:iam::`+servers.MotoAccount+`:user/cms"},
		 "Condition": {"StringEquals": {"sts:ExternalId": "right"}}}]}`, onlyBelow)
	server.EnforceIAM(t)

	client := sts.New(sts.Options{
		Region: servers.Region, BaseEndpoint: &server.Endpoint,
		Credentials: credentials.StaticCredentialsProvider{Value: cms},
	})
	assume := func(externalID string) (*sts.AssumeRoleOutput, error) {
		return client.AssumeRole(t.Context(), &sts.AssumeRoleInput{
			RoleArn: &role, RoleSessionName: aws.String("test"), ExternalId: &externalID,
		})
	}
	_, err := assume("wrong")
	wantDenied(t, "a wrong external ID", err)
	session, err := assume("right")
	if err != nil {
		t.Fatal(err)
	}
	customer := server.S3(aws.Credentials{
		AccessKeyID:     *session.Credentials.AccessKeyId,
		SecretAccessKey: *session.Credentials.SecretAccessKey,
		SessionToken:    *session.Credentials.SessionToken,
	})
	if err := put(t, customer, "cms/a.txt"); err != nil {
		t.Errorf("below the prefix: %v", err)
	}
	wantDenied(t, "outside of the prefix", put(t, customer, "other.txt"))
}

func TestMotoHasCloudFront(t *testing.T) {
	t.Parallel()
	server := servers.Moto(t)
	client := cloudfront.New(cloudfront.Options{
		Region: servers.Region, BaseEndpoint: &server.Endpoint,
		Credentials: credentials.StaticCredentialsProvider{Value: server.Root},
	})
	list, err := client.ListDistributions(t.Context(), &cloudfront.ListDistributionsInput{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.DistributionList.Items) != 0 {
		t.Errorf("a new server has %d distributions", len(list.DistributionList.Items))
	}
}
