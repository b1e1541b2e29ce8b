package bucket

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// PageSize is how many keys one LIST returns and one DeleteMany takes, at most.
const PageSize = 1000

// Listed is an object as a LIST shows it.
type Listed struct {
	Key          string
	ETag         string
	Size         int64
	LastModified time.Time
}

// Head tells what is stored at a key, or ErrNotFound. checksum asks for the
// SHA-256 that S3 keeps of it.
func (b *Bucket) Head(ctx context.Context, key string, checksum bool) (Object, error) {
	call := b.call(opHeadObject, key)
	request := &s3.HeadObjectInput{Bucket: &b.account.Bucket, Key: &key, ExpectedBucketOwner: b.owner()}
	if checksum {
		request.ChecksumMode = types.ChecksumModeEnabled
	}
	out, err := b.session.s3.HeadObject(ctx, request)
	if err != nil {
		return Object{}, b.explainHead(ctx, call, err)
	}

	o := Object{
		Key:         key,
		ETag:        aws.ToString(out.ETag),
		Size:        aws.ToInt64(out.ContentLength),
		ContentType: aws.ToString(out.ContentType),
		SHA256:      wholeSHA256(out.ChecksumSHA256),
	}
	o.readStamp(b.pool.brand, out.Metadata)
	return o, nil
}

// explainHead asks LIST where a HEAD was refused: an answer to HEAD has no
// body, so that it can't say why.
func (b *Bucket) explainHead(ctx context.Context, call Call, err error) error {
	f := b.fail(call, err)
	if status := statusOf(err); status != http.StatusForbidden && status != http.StatusBadRequest {
		return f
	}
	switch there, err := b.exists(ctx, call.Key); {
	case err != nil:
		return err
	case !there:
		return notFound(call)
	}
	return f
}

// exists looks a key up by LIST, which doesn't need GetObject. The key itself
// sorts before all others that begin with it.
func (b *Bucket) exists(ctx context.Context, key string) (bool, error) {
	page, _, err := b.list(ctx, key, "", 1)
	if err != nil {
		return false, err
	}
	return len(page) > 0 && page[0].Key == key, nil
}

// wholeSHA256 turns S3's base64 into hex. A composite checksum, with the
// number of its parts at its end, isn't that of the content.
func wholeSHA256(checksum *string) string {
	sum, err := base64.StdEncoding.DecodeString(aws.ToString(checksum))
	if err != nil || len(sum) != 32 {
		return ""
	}
	return hex.EncodeToString(sum)
}

// Get reads an object of at most limit bytes.
func (b *Bucket) Get(ctx context.Context, key string, limit int64) ([]byte, Object, error) {
	call := b.call("GetObject", key)
	out, err := b.session.s3.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &b.account.Bucket, Key: &key, ExpectedBucketOwner: b.owner(),
	})
	if err != nil {
		return nil, Object{}, b.fail(call, err)
	}
	defer out.Body.Close()
	content, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	if err != nil {
		return nil, Object{}, b.fail(call, err)
	}
	if int64(len(content)) > limit {
		return nil, Object{}, failure.New(failure.Permanent, failure.TooLarge, "%s: more than %d bytes", call, limit)
	}
	o := Object{
		Key:         key,
		ETag:        aws.ToString(out.ETag),
		Size:        int64(len(content)),
		ContentType: aws.ToString(out.ContentType),
	}
	o.readStamp(b.pool.brand, out.Metadata)
	return content, o, nil
}

// List returns the keys below a prefix, a page at a time: next is the token of
// the page that follows, and empty after the last.
func (b *Bucket) List(ctx context.Context, prefix, token string) (page []Listed, next string, err error) {
	return b.list(ctx, prefix, token, PageSize)
}

func (b *Bucket) list(ctx context.Context, prefix, token string, limit int32) ([]Listed, string, error) {
	call := b.call("ListObjectsV2", prefix)
	out, err := b.session.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket:              &b.account.Bucket,
		Prefix:              optional(prefix),
		ContinuationToken:   optional(token),
		MaxKeys:             &limit,
		EncodingType:        types.EncodingTypeUrl,
		ExpectedBucketOwner: b.owner(),
	})
	if err != nil {
		return nil, "", b.fail(call, err)
	}

	page := make([]Listed, 0, len(out.Contents))
	for _, o := range out.Contents {
		key, err := decodeKey(aws.ToString(o.Key), out.EncodingType)
		if err == nil && !strings.HasPrefix(key, prefix) {
			err = errors.New("it isn't below the prefix")
		}
		if err != nil {
			// What a listing names may be deleted: rather nothing than a guess.
			return nil, "", failure.New(failure.Transient, failure.ServerError, "%s: key %q listed: %w", call, aws.ToString(o.Key), err)
		}
		page = append(page, Listed{
			Key:          key,
			ETag:         aws.ToString(o.ETag),
			Size:         aws.ToInt64(o.Size),
			LastModified: aws.ToTime(o.LastModified),
		})
	}
	if !aws.ToBool(out.IsTruncated) {
		return page, "", nil
	}
	next := aws.ToString(out.NextContinuationToken)
	if next == "" || next == token {
		return nil, "", failure.New(failure.Transient, failure.ServerError, "%s: a page without a following one", call)
	}
	return page, next, nil
}

// decodeKey undoes EncodingType=url, which writes a space as "+". Not every
// server obeys it; one that does says so.
func decodeKey(key string, encoding types.EncodingType) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return key, nil
	}
	return url.QueryUnescape(key)
}
