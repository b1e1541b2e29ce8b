package bucket

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// PutInput is one object to write.
type PutInput struct {
	Key string
	// Body is sent only if it ends after exactly Size bytes. A *failure.Error
	// that it returns is Put's result. It isn't read after Put has returned,
	// and a seekable one lets the SDK try again.
	Body io.Reader
	Size int64
	// SHA256 is the content's, in hex, or empty. S3 refuses what differs.
	SHA256      string
	ContentType string
	Stamp       Stamp
	Condition
}

// Put writes an object and returns its ETag. Where the condition doesn't hold,
// the error is ErrConditionFailed.
func (b *Bucket) Put(ctx context.Context, in PutInput) (etag string, err error) {
	call := b.call(opPutObject, in.Key)
	if err := cmp.Or(b.checkKey(call), in.check(call)); err != nil {
		return "", err
	}
	source, err := newSource(in)
	if err != nil {
		return "", err
	}
	defer func() { _ = source.release() }() // its error, if any, is the PUT's below

	request := &s3.PutObjectInput{
		Bucket:              &b.account.Bucket,
		Key:                 &in.Key,
		Body:                source.body(),
		ContentLength:       &in.Size,
		ContentType:         optional(in.ContentType),
		Metadata:            in.Stamp.metadata(b.pool.brand),
		ExpectedBucketOwner: b.owner(),
	}
	request.IfNoneMatch, request.IfMatch = in.headers()
	if in.SHA256 != "" {
		sum, err := hex.DecodeString(in.SHA256)
		if err != nil || len(sum) != 32 {
			return "", failure.New(failure.Permanent, failure.InvalidEvent, "%s: %q isn't a SHA-256 in hex", call, in.SHA256)
		}
		request.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
		request.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(sum))
	}

	sending := context.WithValue(ctx, sourceKey{}, source)
	out, err := b.session.s3.PutObject(sending, request, b.putOptions(in.SHA256 != "", source.seeker != nil))
	// What was wrong with the source explains the rest.
	if bad := source.release(); bad != nil {
		return "", bad
	}
	if err != nil {
		f := b.fail(call, err)
		if f.Code == failure.ChecksumMismatch && in.SHA256 == "" {
			// Only the SDK's own checksum can differ: bytes were damaged on
			// their way, and sending them again helps.
			f = failure.New(failure.Transient, failure.ServerError, "%w", f).WithRequestID(f.RequestID)
		}
		if f.Code == failure.Timeout && source.late.Load() {
			f = failure.New(failure.Transient, failure.SourceSlow,
				"the upload's source gave nothing for so long that S3 gave up: %w", f).WithRequestID(f.RequestID)
		}
		return "", f
	}
	if etag = aws.ToString(out.ETag); etag == "" {
		return "", failure.New(failure.Transient, failure.ServerError, "%s: S3 answered without an ETag", call)
	}
	return etag, nil
}

// putOptions makes streams work that can be read only once. Over TLS the SDK
// appends its checksum to the bytes; a stand-in without TLS gets none, and an
// unsigned payload. Nothing is sent twice that can't be read twice.
func (b *Bucket) putOptions(checksum, seekable bool) func(*s3.Options) {
	return func(o *s3.Options) {
		if !seekable {
			o.RetryMaxAttempts = 1
		}
		// A checksum in a header takes the place of the SDK's, so that nothing
		// would be read for signing's sake alone.
		if checksum || (b.pool.plainHTTP && !seekable) {
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
		}
	}
}

// source is the caller's reader on loan. It withholds the last bytes until the
// reader has ended exactly there, since S3 stores an object as soon as it has
// as many bytes as announced. It remembers what went wrong, and isn't touched
// after release, although the transport may still be sending when S3 has
// answered already.
type source struct {
	key    string
	size   int64
	reader io.Reader
	seeker io.Seeker // nil where the reader can be read only once
	start  int64     // where a seekable reader began

	// reading: the reader is being waited for; late: it was when S3 answered.
	reading, late atomic.Bool

	mu        sync.Mutex
	remaining int64
	released  bool
	err       error
}

type sourceKey struct{}

var errReleased = errors.New("the request is over")

func newSource(in PutInput) (*source, error) {
	s := &source{key: in.Key, size: in.Size, remaining: in.Size, reader: in.Body}
	if in.Size == 0 {
		// HTTP can't tell an empty stream from one of unknown length.
		if err := s.checkEnd(); err != nil {
			return nil, err
		}
		s.reader = bytes.NewReader(nil)
	}
	if seeker, ok := s.reader.(io.Seeker); ok {
		if at, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			s.seeker, s.start = seeker, at
		}
	}
	return s, nil
}

// body shows the SDK a Seek method only where seeking works.
func (s *source) body() io.Reader {
	if s.seeker != nil {
		return seekableSource{s}
	}
	return s
}

func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.released:
		return 0, errReleased
	case s.err != nil:
		return 0, s.err
	case s.remaining <= 0:
		return 0, io.EOF
	}
	s.reading.Store(true)
	defer s.reading.Store(false)
	// net/http reads in a goroutine of its own, where nobody else contains a panic.
	n, err := failure.ContainResult(func() (int, error) { return s.reader.Read(p[:min(int64(len(p)), s.remaining)]) })
	s.remaining -= int64(n)
	switch {
	case s.remaining == 0 && (err == nil || errors.Is(err, io.EOF)):
		s.err = s.checkEnd()
	case errors.Is(err, io.EOF):
		s.err = s.wrongSize(fmt.Sprintf("ended after %d", s.size-s.remaining))
	case err != nil:
		s.err = sourceFailure(err)
	}
	if s.err != nil {
		return 0, s.err
	}
	return n, nil
}

// checkEnd makes sure that nothing follows.
func (s *source) checkEnd() error {
	switch n, err := io.ReadFull(s.reader, make([]byte, 1)); {
	case n > 0:
		return s.wrongSize("has more")
	case !errors.Is(err, io.EOF):
		return sourceFailure(err)
	}
	return nil
}

func (s *source) wrongSize(what string) error {
	return failure.New(failure.Permanent, failure.SizeMismatch,
		"upload to %q: %d bytes were announced, and the source %s", s.key, s.size, what)
}

// release ends the loan and returns what went wrong with the reader.
func (s *source) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
	return s.err
}

type seekableSource struct{ *source }

func (s seekableSource) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released {
		return 0, errReleased
	}
	at, err := s.seeker.Seek(offset, whence)
	if err == nil {
		s.remaining = s.start + s.size - at
	}
	return at, err
}

// WriteTo spares the SDK, which reads an object before it sends it, a buffer.
func (s seekableSource) WriteTo(w io.Writer) (int64, error) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	return io.CopyBuffer(w, struct{ io.Reader }{s.source}, buffer[:])
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// sourceFailure passes a reader's own verdict on as it is.
func sourceFailure(err error) error {
	if isClassified(err) {
		return failure.Of(err)
	}
	f := failure.Of(fmt.Errorf("read the upload's source: %w", err))
	if f.Code == failure.Timeout {
		f.Code = failure.SourceSlow // the attempt's time is over, and it is the source that is waited for
	}
	return f
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
