package bucket

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// CopyInput is one object to copy within the bucket.
type CopyInput struct {
	SourceKey string
	// SourceETag, when given, must still be the source's.
	SourceETag  string
	Key         string
	ContentType string
	Stamp       Stamp
	Condition
}

// Copy copies an object under new metadata and returns the copy's ETag. Its
// errors tell apart ErrSourceNotFound, ErrSourceChanged and, where the target
// isn't as the condition wants it, ErrConditionFailed.
func (b *Bucket) Copy(ctx context.Context, in CopyInput) (etag string, err error) {
	call := b.call(opCopyObject, in.Key)
	call.SourceKey = in.SourceKey
	if err := cmp.Or(b.checkKey(call), b.checkSource(call), in.check(call)); err != nil {
		return "", err
	}
	if in.IfNoneMatch && !b.pool.awsS3 {
		if err := b.checkFree(ctx, call); err != nil {
			return "", err
		}
	}

	request := &s3.CopyObjectInput{
		Bucket: &b.account.Bucket,
		Key:    &in.Key,
		// The SDK sends it as it is, and S3 decodes it.
		CopySource:        aws.String(b.account.Bucket + "/" + escapePath(in.SourceKey)),
		CopySourceIfMatch: quoted(in.SourceETag),
		ContentType:       optional(in.ContentType),
		Metadata:          in.Stamp.metadata(b.pool.brand),
		MetadataDirective: types.MetadataDirectiveReplace,
		// Copying tags or annotations takes permissions that we don't have.
		TaggingDirective:          types.TaggingDirectiveReplace,
		AnnotationDirective:       types.AnnotationDirectiveExclude,
		ExpectedBucketOwner:       b.owner(),
		ExpectedSourceBucketOwner: b.owner(),
	}
	request.IfNoneMatch, request.IfMatch = in.headers()

	out, err := b.session.s3.CopyObject(ctx, request)
	if err != nil {
		return "", b.explainCopy(ctx, call, in, b.fail(call, err))
	}
	if out.CopyObjectResult == nil || aws.ToString(out.CopyObjectResult.ETag) == "" {
		return "", failure.New(failure.Transient, failure.ServerError,
			"%s: S3 answered 200 without a result, so that the copy may or may not be there", call)
	}
	return *out.CopyObjectResult.ETag, nil
}

// checkFree looks at the target first: no server but AWS's own was seen to
// enforce COPY's condition on it.
func (b *Bucket) checkFree(ctx context.Context, call Call) error {
	_, err := b.Head(ctx, call.Key, false)
	switch {
	case err == nil:
		return conditionFailed(call)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

// explainCopy finds out which of the two objects an error is about, which S3's
// answer doesn't say.
func (b *Bucket) explainCopy(ctx context.Context, call Call, in CopyInput, f *failure.Error) error {
	switch {
	case errors.Is(f, ErrConditionFailed) && !errors.Is(f, ErrNotFound):
		if in.SourceETag == "" {
			return f
		}
		seen, err := b.Head(ctx, in.SourceKey, false)
		switch {
		case errors.Is(err, ErrNotFound):
			return sourceNotFound(call)
		case err != nil:
			return err
		case !sameETag(seen.ETag, in.SourceETag):
			return failure.New(failure.Permanent, failure.SourceChanged, "%s: %w", call, ErrSourceChanged)
		}
		return f
	case errors.Is(f, ErrNotFound):
		if in.IfMatch == "" {
			return sourceNotFound(call)
		}
		if _, err := b.Head(ctx, in.SourceKey, false); errors.Is(err, ErrNotFound) {
			return sourceNotFound(call)
		} else if err != nil {
			return err
		}
		return f
	case f.Code == failure.Denied:
		there, err := b.exists(ctx, in.SourceKey)
		switch {
		case err != nil:
			return err
		case !there:
			return sourceNotFound(call)
		}
	}
	return f
}

// checkSource keeps a copy's source below the prefixes that the session reads.
func (b *Bucket) checkSource(call Call) error {
	if strings.HasPrefix(call.SourceKey, b.keyPrefix) {
		return nil
	}
	if p := b.account.ReadPrefix; p != nil && strings.HasPrefix(call.SourceKey, KeyPrefix(*p, "")) {
		return nil
	}
	return failure.New(failure.Permanent, failure.Internal, "%s: the source isn't below %q", call, b.keyPrefix)
}
