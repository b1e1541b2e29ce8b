package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

// answered is an error as the SDK returns it for an answer.
func answered(status int, code, message string) error {
	return &smithy.OperationError{ServiceID: "S3", OperationName: "PutObject", Err: &awshttp.ResponseError{
		RequestID: "REQUEST1",
		ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}},
			Err:      &smithy.GenericAPIError{Code: code, Message: message},
		},
	}}
}

// unsent is an error as the SDK returns it where no answer came.
func unsent(err error) error {
	return &smithy.OperationError{ServiceID: "S3", OperationName: "PutObject", Err: &smithyhttp.RequestSendError{
		Err: &url.Error{Op: "Put", URL: "https://alpha.s3.amazonaws.com/media/a?X-Amz-Security-Token=their-token", Err: err},
	}}
}

func TestEveryAnswerHasItsClass(t *testing.T) {
	t.Parallel()
	const (
		transient   = failure.Transient
		integration = failure.Integration
		permanent   = failure.Permanent
	)
	for _, tc := range []struct {
		err   error
		class failure.Class
		code  string
	}{
		{answered(503, "SlowDown", ""), transient, failure.Throttled},
		{answered(429, "", ""), transient, failure.Throttled},
		{answered(400, "ThrottlingException", ""), transient, failure.Throttled},
		{answered(503, "RequestLimitExceeded", ""), transient, failure.Throttled},
		{answered(503, "ServiceUnavailable", ""), transient, failure.ServerError},
		{answered(500, "InternalError", ""), transient, failure.ServerError},
		{answered(502, "", ""), transient, failure.ServerError},
		{answered(599, "NeverHeardOf", ""), transient, failure.ServerError},
		{answered(200, "InternalError", ""), transient, failure.ServerError},
		{answered(307, "TemporaryRedirect", ""), transient, failure.ServerError},
		{answered(400, "RequestTimeout", ""), transient, failure.Timeout},
		{answered(409, "ConditionalRequestConflict", ""), transient, bucket.Conflict},
		{answered(409, "OperationAborted", ""), transient, bucket.Conflict},
		{answered(409, "NeverHeardOf", ""), transient, bucket.Conflict},
		{answered(400, "ExpiredToken", ""), transient, bucket.StaleCredentials},
		{answered(403, "RequestTimeTooSkewed", ""), transient, bucket.OwnIdentity},
		{answered(403, "SignatureDoesNotMatch", ""), transient, bucket.OwnIdentity},
		{answered(412, "PreconditionFailed", ""), transient, bucket.ConditionFailed},

		{answered(403, "AccessDenied", "Access Denied"), integration, failure.Denied},
		{answered(403, "NeverHeardOf", ""), integration, failure.Denied},
		{answered(403, "AccessDenied", "is not authorized to perform: kms:GenerateDataKey on resource"), integration, bucket.KMSDenied},
		{answered(400, "KMS.DisabledException", ""), integration, bucket.KMSDenied},
		{answered(400, "KMS.ThrottlingException", ""), transient, failure.Throttled},
		{answered(500, "KMS.KMSInternalException", ""), transient, failure.ServerError},
		{answered(503, "KMS.DependencyTimeoutException", ""), transient, failure.ServerError},
		{answered(404, "NoSuchBucket", ""), integration, bucket.NoSuchBucket},
		{answered(301, "PermanentRedirect", ""), integration, bucket.WrongRegion},
		{answered(301, "", ""), integration, bucket.WrongRegion},
		{answered(400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'"), integration, bucket.WrongRegion},
		{answered(403, "InvalidAccessKeyId", ""), integration, bucket.CredentialsRefused},
		{answered(403, "AccountProblem", ""), integration, bucket.AccountSuspended},
		{answered(403, "AllAccessDisabled", ""), integration, bucket.AccountSuspended},
		{answered(403, "NotSignedUp", ""), integration, bucket.AccountSuspended},

		{answered(400, "BadDigest", ""), permanent, failure.ChecksumMismatch},
		{answered(400, "XAmzContentSHA256Mismatch", ""), permanent, failure.ChecksumMismatch},
		{answered(400, "XAmzContentChecksumMismatch", ""), permanent, failure.ChecksumMismatch},
		{answered(400, "EntityTooLarge", ""), permanent, failure.TooLarge},
		{answered(400, "KeyTooLongError", ""), permanent, failure.InvalidEvent},
		{answered(403, "InvalidObjectState", ""), permanent, bucket.Refused},
		{answered(501, "NotImplemented", ""), permanent, bucket.Refused},
		{answered(400, "NeverHeardOf", ""), permanent, bucket.Refused},

		{unsent(context.DeadlineExceeded), transient, failure.Timeout},
		{unsent(context.Canceled), failure.Interrupted, failure.Canceled},
		{&smithy.CanceledError{Err: context.Canceled}, failure.Interrupted, failure.Canceled},
		{unsent(syscall.ECONNRESET), transient, failure.ServerError},
		{unsent(&net.DNSError{IsNotFound: true}), transient, failure.ServerError},
		{unsent(&net.OpError{Op: "dial", Err: &net.DNSError{IsTimeout: true}}), transient, failure.Timeout},
		{unsent(io.ErrUnexpectedEOF), transient, failure.ServerError},
		{&smithy.DeserializationError{Err: errors.New("bad XML")}, transient, failure.ServerError},
		{errors.New("a fault of our own"), transient, failure.Internal},

		{unsent(failure.New(failure.Interrupted, failure.Canceled, "the lease is lost")), failure.Interrupted, failure.Canceled},

		// An answer that came counts, although the time was up right after it.
		{errors.Join(answered(412, "PreconditionFailed", ""), context.Canceled), transient, bucket.ConditionFailed},
		{errors.Join(answered(403, "AccessDenied", ""), context.DeadlineExceeded), integration, failure.Denied},
	} {
		call := bucket.Call{Operation: "PutObject", ServiceID: service, Bucket: "alpha", Key: "media/a"}
		got := bucket.Classify(call, tc.err)
		if got.Class != tc.class || got.Code != tc.code {
			t.Errorf("%v: got %s %s, want %s %s", tc.err, got.Class, got.Code, tc.class, tc.code)
		}
		for _, part := range []string{"PutObject", "alpha", "media/a", service} {
			if !strings.Contains(got.Error(), part) {
				t.Errorf("%q doesn't name %q", got, part)
			}
		}
		if strings.Contains(got.Error(), "their-token") {
			t.Errorf("a URL shows: %v", got)
		}
	}
}

func TestACancelledWriteIsInDoubt(t *testing.T) {
	t.Parallel()
	for operation, doubt := range map[string]bool{
		"PutObject": true, "CopyObject": true, "DeleteObject": true, "DeleteObjects": true,
		"HeadObject": false, "GetObject": false, "ListObjectsV2": false, "HeadBucket": false, "AssumeRole": false,
	} {
		call := bucket.Call{Operation: operation}
		for err, want := range map[error]bool{
			unsent(context.Canceled):         doubt,
			unsent(context.DeadlineExceeded): false,
			answered(503, "SlowDown", ""):    false,
			unsent(failure.New(failure.Interrupted, failure.Canceled, "the lease is lost")): false, // before it was sent
		} {
			if got := errors.Is(bucket.Classify(call, err), bucket.ErrInDoubt); got != want {
				t.Errorf("%s, %v: in doubt: %t", operation, err, got)
			}
		}
	}
}

func TestA404MeansWhatTheCallLookedFor(t *testing.T) {
	t.Parallel()
	for operation, class := range map[string]failure.Class{
		"HeadObject": failure.Permanent, "DeleteObject": failure.Permanent, "GetObject": failure.Permanent,
		"PutObject": failure.Transient,
	} {
		f := bucket.Classify(bucket.Call{Operation: operation}, answered(404, "NoSuchKey", ""))
		if f.Class != class || !errors.Is(f, bucket.ErrNotFound) {
			t.Errorf("%s: %s: %v", operation, f.Class, f)
		}
	}
}

func TestWhateverAWSAnswersIsClassified(t *testing.T) {
	t.Parallel()
	classes := map[failure.Class]bool{
		failure.Transient: true, failure.Integration: true, failure.Permanent: true, failure.Interrupted: true,
	}
	rapid.Check(t, func(t *rapid.T) {
		call := bucket.Call{Operation: rapid.SampledFrom([]string{"PutObject", "HeadObject", "CopyObject", "AssumeRole", "GetCallerIdentity"}).Draw(t, "operation")}
		status := rapid.IntRange(100, 599).Draw(t, "status")
		code := rapid.StringMatching(`[A-Z][A-Za-z.]{0,20}`).Draw(t, "code")
		f := bucket.Classify(call, answered(status, code, "text"))
		if !classes[f.Class] || f.Code == "" || f.RequestID != "REQUEST1" {
			t.Errorf("%+v", f)
		}
		if status >= 500 && status != 501 && f.Class == failure.Permanent {
			t.Errorf("%d %s is permanent", status, code)
		}
		if call.Operation == "GetCallerIdentity" && f.Class != failure.Transient {
			t.Errorf("%d %s about ourselves is %s", status, code, f.Class)
		}
	})
}

func TestClassifyingTwiceKeepsTheFirstVerdict(t *testing.T) {
	t.Parallel()
	inner := bucket.Classify(bucket.Call{Operation: "AssumeRole"}, answered(403, "AccessDenied", ""))
	outer := bucket.Classify(bucket.Call{Operation: "PutObject"}, fmt.Errorf("get credentials: %w", inner))
	if outer.Class != inner.Class || outer.Code != bucket.AssumeRoleDenied || outer.RequestID != "REQUEST1" {
		t.Errorf("%+v", outer)
	}
}
