package awslocal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

func TestRoleIsAssumedOnlyAsItsTrustPolicySays(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{ExternalID: "right"})
	stranger := must(w.AddUser(awslocal.User{Account: "111111111111"}))
	chained := w.chained()
	tests := []struct {
		name   string
		keys   awslocal.Credentials
		change func(*sts.AssumeRoleInput)
		code   string
	}{
		{"as trusted", w.keys, func(*sts.AssumeRoleInput) {}, ""},
		{"through a role of the trusted account", chained, func(*sts.AssumeRoleInput) {}, ""},
		{"no external ID", w.keys, func(in *sts.AssumeRoleInput) { in.ExternalId = nil }, "AccessDenied"},
		{"wrong external ID", w.keys, func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("wrong") }, "AccessDenied"},
		{"unknown role", w.keys, func(in *sts.AssumeRoleInput) { in.RoleArn = aws.String("arn:aws:iam::123456789012:role/none") }, "AccessDenied"},
		{"stranger's account", stranger, func(*sts.AssumeRoleInput) {}, "AccessDenied"},
		{"session name too short", w.keys, func(in *sts.AssumeRoleInput) { in.RoleSessionName = aws.String("x") }, "ValidationError"},
		{"session name with a space", w.keys, func(in *sts.AssumeRoleInput) { in.RoleSessionName = aws.String("a b") }, "ValidationError"},
		{"external ID with a space", w.keys, func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("a b") }, "ValidationError"},
		{"15 minutes", w.keys, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(900) }, ""},
		{"under 15 minutes", w.keys, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(899) }, "ValidationError"},
		{"above the role's maximum", w.keys, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7201) }, "ValidationError"},
		{"two hours", w.keys, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7200) }, ""},
		{"two hours, chained", chained, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7200) }, "ValidationError"},
		{"malformed session policy", w.keys, func(in *sts.AssumeRoleInput) { in.Policy = aws.String("{") }, "MalformedPolicyDocument"},
		{"session policy without a statement", w.keys, func(in *sts.AssumeRoleInput) { in.Policy = aws.String(`{"Version":"2012-10-17"}`) }, "MalformedPolicyDocument"},
		{"session policy of 2,048 characters", w.keys, func(in *sts.AssumeRoleInput) { in.Policy = padded(2048) }, ""},
		{"session policy of 2,049 characters", w.keys, func(in *sts.AssumeRoleInput) { in.Policy = padded(2049) }, "ValidationError"},
		{"session policy with Japanese", w.keys, func(in *sts.AssumeRoleInput) { in.Policy = aws.String(onObjects("画像/*")) }, "ValidationError"},
	}
	if err := w.ChangeRole(w.customer.RoleARN, func(r *awslocal.Role) { r.MaxSession = 2 * time.Hour }); err != nil {
		t.Fatal(err)
	}
	messages := map[string]bool{}
	for _, test := range tests {
		in := &sts.AssumeRoleInput{RoleArn: &w.customer.RoleARN, ExternalId: aws.String("right"), RoleSessionName: aws.String("session")}
		test.change(in)
		_, err := w.sts(test.keys).AssumeRole(t.Context(), in)
		if got := codeOf(err); got != test.code {
			t.Errorf("%s: %v, want %q", test.name, err, test.code)
		}
		if test.code == "AccessDenied" && test.keys == w.keys {
			message := err.Error()[strings.Index(err.Error(), "User: "):]
			messages[strings.ReplaceAll(message, *in.RoleArn, "ROLE")] = true
		}
	}
	if len(messages) != 1 {
		t.Errorf("the refusals tell what was wrong: %v", messages)
	}
}

// chained returns credentials of a role in the operator's own account.
func (w *world) chained() awslocal.Credentials {
	w.t.Helper()
	const own = "arn:aws:iam::999999999999:role/worker"
	if err := w.SetRole(awslocal.Role{ARN: own, TrustPrincipal: "999999999999", Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}]}`}); err != nil {
		w.t.Fatal(err)
	}
	out, err := w.sts(w.keys).AssumeRole(w.t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(own), RoleSessionName: aws.String("worker-1")})
	if err != nil {
		w.t.Fatal(err)
	}
	return awslocal.Credentials{AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken}
}

func padded(length int) *string {
	policy := onObjects("*")
	return aws.String(policy + strings.Repeat(" ", length-len(policy)))
}

// onObjects allows all that the role may do on objects of any bucket.
func onObjects(keys string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::*/` + keys + `"}]}`
}

func TestCallerIdentityNamesTheSession(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	for keys, want := range map[awslocal.Credentials]string{
		w.keys:       "arn:aws:iam::999999999999:user/ownbucket",
		w.assume(""): "arn:aws:sts::123456789012:assumed-role/alpha-prod-assets/ownbucket-test",
	} {
		out, err := w.sts(keys).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		check(t, err, "")
		if *out.Arn != want {
			t.Errorf("%s, want %s", *out.Arn, want)
		}
	}
}

func TestManualsPolicyAllowsWhatWeNeedAndNoMore(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Prefix: "media"})
	client, b, ctx := w.session(), &w.customer.Bucket, t.Context()
	must(w.PutDirect(*b, "other/k", nil, awslocal.Stranger{}))
	must(w.PutDirect(*b, "media/tagged", nil, awslocal.Stranger{Tags: map[string]string{"a": "b"}}))
	must(w.PutDirect(*b, "media/k", nil, awslocal.Stranger{}))
	key := func(k string) *string { return &k }
	tests := map[string]struct {
		call func() error
		code string
	}{
		"put":            {func() error { _, err := w.put(client, "media/k", "v"); return err }, ""},
		"put beside":     {func() error { _, err := w.put(client, "mediafoo/k", "v"); return err }, "AccessDenied"},
		"put above":      {func() error { _, err := w.put(client, "k", "v"); return err }, "AccessDenied"},
		"copy within":    {func() error { return w.copy(client, "media/k", "media/l") }, ""},
		"copy out":       {func() error { return w.copy(client, "media/k", "other/l") }, "AccessDenied"},
		"copy in":        {func() error { return w.copy(client, "other/k", "media/l") }, "AccessDenied"},
		"copy with tags": {func() error { return w.copy(client, "media/tagged", "media/t") }, "AccessDenied"},
		"copy without":   {func() error { return w.copy(client, "media/tagged", "media/u", replaceTags) }, ""},
		"read": {func() error {
			_, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: key("media/k")})
			return err
		}, ""},
		"read beside": {func() error {
			_, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: key("other/k")})
			return err
		}, "AccessDenied"},
		"read missing": {func() error {
			_, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: key("media/n")})
			return err
		}, "NoSuchKey"},
		"head missing": {func() error {
			_, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b, Key: key("media/n")})
			return err
		}, "NotFound"},
		"head beside": {func() error {
			_, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b, Key: key("other/k")})
			return err
		}, "Forbidden"},
		"delete beside": {func() error {
			_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: b, Key: key("other/k")})
			return err
		}, "AccessDenied"},
		"delete a version": {func() error {
			_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: b, Key: key("media/k"), VersionId: key("v")})
			return err
		}, "AccessDenied"},
		"list": {func() error { _, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: b}); return err }, ""},
		"list versions": {func() error {
			_, err := client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: b})
			return err
		}, "AccessDenied"},
		"list buckets": {func() error { _, err := client.ListBuckets(ctx, &s3.ListBucketsInput{}); return err }, "AccessDenied"},
		"location": {func() error {
			_, err := client.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: b})
			return err
		}, ""},
		"head bucket": {func() error { _, err := client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: b}); return err }, ""},
		"no such bucket": {func() error {
			_, err := client.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: key("nowhere")})
			return err
		}, "NoSuchBucket"},
		"versioning": {func() error {
			_, err := client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: b})
			return err
		}, "AccessDenied"},
		"tagging": {func() error {
			_, err := client.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: b, Key: key("media/k")})
			return err
		}, "AccessDenied"},
		"put with tags": {func() error {
			_, err := w.put(client, "media/k", "v", func(in *s3.PutObjectInput) { in.Tagging = key("a=b") })
			return err
		}, "AccessDenied"},
		"put with an ACL": {func() error {
			_, err := w.put(client, "media/k", "v", func(in *s3.PutObjectInput) { in.ACL = types.ObjectCannedACLPrivate })
			return err
		}, "AccessControlListNotSupported"},
		"multipart": {func() error {
			_, err := client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: b, Key: key("media/k")})
			return err
		}, "NotImplemented"},
		"abort multipart": {func() error {
			_, err := client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: b, Key: key("media/k"), UploadId: key("u")})
			return err
		}, "AccessDenied"},
		"expected owner": {func() error {
			_, err := client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: b, ExpectedBucketOwner: &w.customer.Account})
			return err
		}, ""},
		"other owner": {func() error {
			_, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: b, ExpectedBucketOwner: key("111111111111")})
			return err
		}, "AccessDenied"},
		"other source owner": {func() error {
			return w.copy(client, "media/k", "media/l", func(in *s3.CopyObjectInput) { in.ExpectedSourceBucketOwner = key("111111111111") })
		}, "AccessDenied"},
	}
	for name, test := range tests {
		before := len(w.Refused())
		if got := codeOf(test.call()); got != test.code {
			t.Errorf("%s: %q, want %q", name, got, test.code)
		}
		denied := test.code == "AccessDenied" || test.code == "Forbidden"
		if got := len(w.Refused()) - before; got != 0 != denied {
			t.Errorf("%s: %d refusals recorded", name, got)
		}
	}
}

func replaceTags(in *s3.CopyObjectInput) { in.TaggingDirective = types.TaggingDirectiveReplace }

func TestKeysPreconditionsNeedTheRightToRead(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{
		Policy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["s3:PutObject","s3:DeleteObject"],"Resource":"arn:aws:s3:::alpha-prod-assets/*"}}`,
	})
	client := w.session()
	etag, err := w.put(client, "k", "v", func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
	check(t, err, "")
	_, err = w.put(client, "k", "v", func(in *s3.PutObjectInput) { in.IfMatch = &etag })
	check(t, err, "AccessDenied")
	_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k"), IfMatch: &etag})
	check(t, err, "AccessDenied")
	_, err = client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k")})
	check(t, err, "Forbidden")
}

func TestMissingKeyIsForbiddenToWhoMayNotList(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{
		Policy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::alpha-prod-assets/*"}}`,
	})
	_, err := w.session().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("absent")})
	check(t, err, "AccessDenied")
}

func TestSessionPolicyNarrowsTheRole(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	const kms = `,{"Effect":"Allow","Action":["kms:GenerateDataKey","kms:Decrypt"],"Resource":"*","Condition":{"StringLike":{"kms:ViaService":"s3.*.amazonaws.com"}}}`
	policy := func(version, resource string) string {
		return fmt.Sprintf(`{"Version":%q,"Statement":[{"Effect":"Allow","Action":["s3:PutObject","iam:CreateUser"],"Resource":%q}%s]}`, version, "arn:aws:s3:::alpha-prod-assets/"+resource, kms)
	}
	const newer, older = "2012-10-17", "2008-10-17"
	tests := []struct {
		policy, key, code string
	}{
		{policy(newer, "media/*"), "media/k", ""},
		{policy(newer, "media/*"), "mediafoo/k", "AccessDenied"},
		{policy(newer, "media/*"), "Media/k", "AccessDenied"},
		{policy(newer, "media/*"), "media", "AccessDenied"},
		{policy(newer, "med?a/*"), "medya/k", ""},
		{policy(newer, "a${*}b/*"), "a*b/k", ""},
		{policy(newer, "a${*}b/*"), "axb/k", "AccessDenied"},
		{policy(newer, "a${?}b${$}/*"), "a?b$/k", ""},
		{policy(older, "a${*}b/*"), "a${x}b/k", ""},
		{policy(older, "a${*}b/*"), "a*b/k", "AccessDenied"},
		{strings.ReplaceAll(policy(newer, "JP/*"), "JP", `\u753b\u50cf`), "画像/k", ""},
		{`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"s3:Put*","Resource":"arn:aws:s3:::*/secret/*"}]}`, "secret/k", "AccessDenied"},
		{`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"s3:Put*","Resource":"arn:aws:s3:::*/secret/*"}]}`, "open/k", ""},
		{`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:PutObject","Resource":"*","Condition":{"Null":{"s3:if-none-match":"false"}}}]}`, "k", "AccessDenied"},
	}
	for _, test := range tests {
		_, err := w.put(w.s3(w.assume(test.policy)), test.key, "v")
		if got := codeOf(err); got != test.code {
			t.Errorf("%s with %s: %v, want %q", test.key, test.policy, err, test.code)
		}
	}
}

func TestListingIsBoundByAPrefixCondition(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.s3(w.assume(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringLike":{"s3:prefix":"media/*"}}}]}`))
	for prefix, code := range map[string]string{"media/": "", "media/a": "", "": "AccessDenied", "mediafoo/": "AccessDenied"} {
		in := &s3.ListObjectsV2Input{Bucket: &w.customer.Bucket}
		if prefix != "" {
			in.Prefix = &prefix
		}
		_, err := client.ListObjectsV2(t.Context(), in)
		check(t, err, code)
	}
	_, err := client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &w.customer.Bucket})
	check(t, err, "Forbidden")
}

func TestCustomerBreaksAndMendsTheRole(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	_, err := w.put(client, "k", "v")
	check(t, err, "")
	change := func(f func(*awslocal.Role)) {
		if err := w.ChangeRole(w.customer.RoleARN, f); err != nil {
			t.Fatal(err)
		}
	}
	change(func(r *awslocal.Role) { r.Policy = "" })
	_, err = w.put(client, "k", "v")
	check(t, err, "AccessDenied")
	change(func(r *awslocal.Role) { r.Policy = w.customer.Policy })
	_, err = w.put(client, "k", "v")
	check(t, err, "")
	w.DeleteRole(w.customer.RoleARN)
	_, err = w.put(client, "k", "v")
	check(t, err, "AccessDenied")
}

func TestBucketOfAnotherAccountNeedsItsOwnPolicyToo(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Policy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}`})
	if err := w.CreateBucket("elsewhere", awslocal.BucketOptions{OwnerAccount: "222222222222"}); err != nil {
		t.Fatal(err)
	}
	client := w.session()
	put := func() error {
		_, err := w.put(client, "k", "v", func(in *s3.PutObjectInput) { in.Bucket = aws.String("elsewhere") })
		return err
	}
	check(t, put(), "AccessDenied")
	if err := w.SetBucketPolicy("elsewhere", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"`+w.customer.RoleARN+`"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::elsewhere/*"}}`); err != nil {
		t.Fatal(err)
	}
	check(t, put(), "")
	if err := w.SetBucketPolicy("elsewhere", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::elsewhere/*"},
		{"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"*","Condition":{"Null":{"s3:if-none-match":"true","s3:if-match":"true"}}}]}`); err != nil {
		t.Fatal(err)
	}
	check(t, put(), "AccessDenied")
	_, err := w.put(client, "l", "v", func(in *s3.PutObjectInput) { in.Bucket, in.IfNoneMatch = aws.String("elsewhere"), aws.String("*") })
	check(t, err, "")
}

func TestEncryptedBucketNeedsRightsOnItsKey(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:123456789012:key/1"
	const s3Only = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}%s]}`
	const withKey = `,{"Effect":"Allow","Action":["kms:GenerateDataKey","kms:Decrypt"],"Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"}}}`
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Policy: fmt.Sprintf(s3Only, ""), Options: awslocal.BucketOptions{KMSKey: key}})
	client := w.session()
	_, err := w.put(client, "k", "v")
	check(t, err, "AccessDenied")
	if err == nil || !strings.Contains(err.Error(), "kms:GenerateDataKey") {
		t.Errorf("%v doesn't tell of the key", err)
	}
	if err := w.ChangeRole(w.customer.RoleARN, func(r *awslocal.Role) { r.Policy = fmt.Sprintf(s3Only, withKey) }); err != nil {
		t.Fatal(err)
	}
	etag, err := w.put(client, "k", "v")
	check(t, err, "")
	if object, _, _ := w.GetDirect(w.customer.Bucket, "k"); etag == `"`+object.MD5+`"` {
		t.Error("the ETag is the MD5")
	}
	check(t, w.DenyKMS(w.customer.Bucket, "k"), "")
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k")})
	check(t, err, "AccessDenied")
	_, err = w.put(client, "l", "v")
	check(t, err, "")
}

func TestRefusedHeadBucketStillTellsTheRegion(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Region: "eu-west-1", Policy: onObjects("*")})
	_, err := w.session().HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &w.customer.Bucket})
	check(t, err, "Forbidden")
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.Response.Header.Get("X-Amz-Bucket-Region") != "eu-west-1" {
		t.Errorf("%v names no region", err)
	}
	if answer.Response.ContentLength > 0 || answer.Response.Header.Get("X-Amz-Request-Id") == "" {
		t.Errorf("an answer to HEAD with a body, or without a request ID: %v", answer.Response.Header)
	}
}
