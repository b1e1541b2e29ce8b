package bucket

import (
	"context"
	"errors"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// Delete deletes the object with the given ETag; an empty one means whatever
// is there. ErrNotFound says that nothing was, ErrConditionFailed that another
// object was.
func (b *Bucket) Delete(ctx context.Context, key, ifMatch string) error {
	call := b.call(opDeleteObject, key)
	if err := b.checkKey(call); err != nil {
		return err
	}
	_, err := b.session.s3.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: &b.account.Bucket, Key: &key, IfMatch: quoted(ifMatch), ExpectedBucketOwner: b.owner(),
	})
	if err != nil {
		return b.fail(call, err)
	}
	return nil
}

// KeyFailure is a key that DeleteMany couldn't delete.
type KeyFailure struct {
	Key string
	Err *failure.Error
}

// DeleteMany deletes at most PageSize keys, whatever is stored there. Keys
// that aren't there count as deleted. An error means that some or all of the
// keys may not have been tried.
func (b *Bucket) DeleteMany(ctx context.Context, keys []string) ([]KeyFailure, error) {
	call := b.call(opDeleteObjects, "")
	if len(keys) > PageSize {
		return nil, failure.New(failure.Permanent, failure.Internal, "%s: %d keys at once, and S3 takes %d", call, len(keys), PageSize)
	}
	var together []types.ObjectIdentifier
	var alone []string
	for _, key := range keys {
		if err := b.checkKey(b.call(opDeleteObjects, key)); err != nil {
			return nil, err
		}
		if xmlHolds(key) {
			together = append(together, types.ObjectIdentifier{Key: aws.String(key)})
		} else {
			alone = append(alone, key)
		}
	}

	failed, err := b.deleteTogether(ctx, call, together)
	if err != nil {
		return failed, err
	}
	for _, key := range alone {
		err := b.Delete(ctx, key, "")
		if err == nil || errors.Is(err, ErrNotFound) {
			continue
		}
		f := failure.Of(err)
		if f.Class == failure.Interrupted {
			return failed, f
		}
		failed = append(failed, KeyFailure{key, f})
	}
	return failed, nil
}

func (b *Bucket) deleteTogether(ctx context.Context, call Call, keys []types.ObjectIdentifier) ([]KeyFailure, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	out, err := b.session.s3.DeleteObjects(ctx, &s3.DeleteObjectsInput{
		Bucket:              &b.account.Bucket,
		Delete:              &types.Delete{Objects: keys, Quiet: aws.Bool(true)},
		ExpectedBucketOwner: b.owner(),
	})
	if err != nil {
		return nil, b.fail(call, err)
	}
	var failed []KeyFailure
	for _, e := range out.Errors {
		key := aws.ToString(e.Key)
		f := classifyAnswer(b.call(call.Operation, key), answer{code: aws.ToString(e.Code), message: aws.ToString(e.Message)})
		if !errors.Is(f, ErrNotFound) {
			failed = append(failed, KeyFailure{key, f})
		}
	}
	return failed, nil
}

// xmlHolds tells whether XML 1.0 can hold a key as it is. The SDK writes U+FFFD
// for everything else, without an error: another key would be deleted. Of the
// white space only the space survives every parser.
func xmlHolds(key string) bool {
	if !utf8.ValidString(key) {
		return false
	}
	for _, r := range key {
		if r < ' ' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}
