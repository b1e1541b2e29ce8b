package bucket

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// Bucket is one customer's bucket. All its errors are *failure.Error.
type Bucket struct {
	pool      *Pool
	session   *session
	account   Account
	keyPrefix string
}

// Condition says what must be true of a key for a write to happen. Exactly one
// of the two is set: nothing is ever overwritten unseen.
type Condition struct {
	// IfNoneMatch writes only where there is no object.
	IfNoneMatch bool
	// IfMatch is the ETag of the object that may be overwritten.
	IfMatch string
}

func (c Condition) check(call Call) error {
	if c.IfNoneMatch == (c.IfMatch != "") {
		return failure.New(failure.Permanent, failure.Internal, "%s: want exactly one condition", call)
	}
	return nil
}

// headers are the values of If-None-Match and If-Match.
func (c Condition) headers() (ifNoneMatch, ifMatch *string) {
	if c.IfNoneMatch {
		return aws.String("*"), nil
	}
	return nil, quoted(c.IfMatch)
}

// quoted spells an ETag as HTTP wants it; nil when there is none.
func quoted(etag string) *string {
	if etag == "" {
		return nil
	}
	return aws.String(`"` + strings.Trim(etag, `"`) + `"`)
}

// sameETag compares ETags with or without quotes.
func sameETag(a, b string) bool { return strings.Trim(a, `"`) == strings.Trim(b, `"`) }

// Region asks where the bucket is, which needs no more than ListBucket.
func (b *Bucket) Region(ctx context.Context) (string, error) {
	out, err := b.session.s3.HeadBucket(ctx, &s3.HeadBucketInput{
		Bucket: &b.account.Bucket, ExpectedBucketOwner: b.owner(),
	})
	if err == nil {
		return aws.ToString(out.BucketRegion), nil
	}
	// A redirect names the right region, which is just what was asked.
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusMovedPermanently {
		if region := answer.HTTPResponse().Header.Get("X-Amz-Bucket-Region"); region != "" {
			return region, nil
		}
	}
	return "", b.fail(b.call("HeadBucket", ""), err)
}

func (b *Bucket) owner() *string {
	if b.account.Owner == "" {
		return nil
	}
	return &b.account.Owner
}

// call names a call, before it is made.
func (b *Bucket) call(operation, key string) Call {
	growStack()
	return Call{Operation: operation, ServiceID: b.account.ServiceID, Bucket: b.account.Bucket, Key: key}
}

// fail classifies an error. Credentials that S3 turned away are dropped, so
// that the next call opens a new session.
func (b *Bucket) fail(call Call, err error) *failure.Error {
	f := Classify(call, err)
	if f.Code == StaleCredentials || f.Code == CredentialsRefused {
		b.session.credentials.Invalidate()
	}
	return f
}

// checkKey is the last line of defence: whatever the callers got wrong, no
// object outside the integration's prefix is written or deleted.
func (b *Bucket) checkKey(call Call) error {
	if rest, ok := strings.CutPrefix(call.Key, b.keyPrefix); !ok || rest == "" {
		return failure.New(failure.Permanent, failure.Internal, "%s: the key isn't below %q", call, b.keyPrefix)
	}
	return nil
}

// growStack makes the goroutine's stack large enough for the SDK's layers of
// middleware. Under them it would grow in steps, each of which moves all frames
// there are: that was a tenth of an upload's time.
//
//go:noinline
func growStack() {
	var room [16 << 10]byte
	runtime.KeepAlive(&room)
}
