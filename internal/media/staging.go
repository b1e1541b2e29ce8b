package media

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// serviceIDVariable stands in Options.StagingPrefix for the event's service.
const serviceIDVariable = "{service_id}"

// openStaging opens bucket/key; the key is everything after the first slash,
// raw, whatever it contains.
func (s *Sources) openStaging(ctx context.Context, path string, upload Upload) (*stream, error) {
	bucket, key, _ := strings.Cut(path, "/")
	name := shown("s3://" + path)
	if err := s.checkStaging(name, bucket, key); err != nil {
		return nil, err
	}
	if err := s.checkTenant(name, key, upload.ServiceID); err != nil {
		return nil, err
	}
	w := s.newWatch(ctx, upload)
	waiting := w.limit(s.options.HeaderTimeout, "no answer")
	w.begin()
	object, err := s.options.S3.GetObject(w.ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	w.end(0)
	waiting.Stop()
	if err != nil {
		ended := w.ended(name)
		w.close()
		if ended != nil {
			return nil, ended
		}
		return nil, classifyStaging(name, err)
	}
	result := &stream{name: name, size: -1, openEnded: true}
	if answer, ok := awsmiddleware.GetRawResponse(object.ResultMetadata).(*smithyhttp.Response); ok {
		result.size, result.openEnded = answer.ContentLength, openEnded(answer.Response)
	}
	result.body = &watchedBody{name: name, body: object.Body, watch: w, idle: s.options.IdleTimeout}
	return result, nil
}

func (s *Sources) checkStaging(name, bucket, key string) error {
	const keyLimit = 1024 // bytes, S3's
	switch {
	case !slices.Contains(s.options.StagingBuckets, bucket):
		return refused("%s: the bucket isn't one of the staging buckets, name it in OWNBUCKET_STAGING_BUCKETS", name)
	case key == "":
		return refused("%s has no key", name)
	case len(key) > keyLimit:
		return refused("%s: the key has %d bytes, above S3's limit of %d", name, len(key), keyLimit)
	}
	// The SDK sends such segments as they are. Where a proxy resolves them,
	// a path-style request would leave the bucket.
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "." || segment == ".." {
			return refused("%s: a key with the segment %q is not allowed", name, segment)
		}
	}
	return nil
}

// checkTenant holds an event to the keys of its own service, where these are
// told apart by their prefix.
func (s *Sources) checkTenant(name, key, serviceID string) error {
	if s.options.StagingPrefix == "" {
		return nil
	}
	// The directory of a/b would lie in that of a.
	if serviceID == "" || strings.Contains(serviceID, "/") {
		return refused("%s: the service %q has no staging directory of its own: OWNBUCKET_STAGING_PREFIX needs service IDs without a slash", name, serviceID)
	}
	if prefix := strings.ReplaceAll(s.options.StagingPrefix, serviceIDVariable, serviceID); !strings.HasPrefix(key, prefix) {
		return refused("%s: the service %q may only name keys below %q (OWNBUCKET_STAGING_PREFIX)", name, serviceID, prefix)
	}
	return nil
}

// classifyStaging sorts GetObject's errors. Whatever 4xx isn't the missing
// object is our own set-up: rights, a bucket's name or region, KMS. The event
// waits for it to be mended, and the customer's integration isn't touched.
func classifyStaging(name string, err error) error {
	var api smithy.APIError
	var response *awshttp.ResponseError
	if !errors.As(err, &response) || response.HTTPStatusCode() < 300 {
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err // without the URL, which holds the key
		}
		return unavailable("%s: no answer from the staging storage: %w", name, err)
	}
	code := http.StatusText(response.HTTPStatusCode())
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	return stagingFailure(name, code, response.HTTPStatusCode()).WithRequestID(response.ServiceRequestID())
}

func stagingFailure(name, code string, status int) *failure.Error {
	switch {
	case status == http.StatusNotFound && code != "NoSuchBucket":
		return gone("%s is not there", name)
	case status == http.StatusTooManyRequests, status >= 500, code == "RequestTimeout":
		return unavailable("%s: the staging storage answers %d %s", name, status, code)
	default:
		return denied("%s: the staging storage answers %d %s: the worker's own credentials need s3:GetObject, and s3:ListBucket so that a missing object can be told from a denied one", name, status, code)
	}
}
