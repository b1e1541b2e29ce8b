package media

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/ownbucket/ownbucket/internal/failure"
)

const (
	// bufferLimit is up to which size, in bytes, a content is verified in
	// memory before any of it is offered.
	bufferLimit = 1 << 20
	// withheldLimit is how many bytes a streamed content keeps back, at most,
	// until the whole of it is verified.
	withheldLimit = 4 << 10
)

// Content is an upload's bytes.
//
// Body yields exactly Size bytes and then io.EOF only if the source ended
// exactly there and, where the event has a checksum, the bytes have it. Else a
// Read fails with a *failure.Error before the last bytes are out, so that a
// PUT that announced Size as its length never completes.
//
// Where all was verified beforehand (up to 1 MiB, or a length that had to be
// measured) Body is an io.Seeker too, and can be sent again. Otherwise it can
// be read once; memory doesn't grow with Size.
type Content struct {
	// Size is the length in bytes, to be announced as Content-Length.
	Size int64
	// Body must be closed by the caller. Closing is safe during a Read.
	Body io.ReadCloser
}

// content makes a stream safe to send. On error the stream is left to the
// caller to close.
func (s *Sources) content(stream *stream, service string, claimed *int64, digest []byte) (*Content, error) {
	if stream.openEnded && claimed == nil && digest == nil {
		return nil, refused("%s tells no length and doesn't send in chunks, so that half of it couldn't be told from all of it: publish it with its size or checksum_sha256", stream.name)
	}
	switch {
	case claimed == nil:
	case stream.size < 0:
		stream.size = *claimed
	case stream.size != *claimed:
		return nil, sizeMismatch("%s has %d bytes, but the event says %d", stream.name, stream.size, *claimed)
	}
	if stream.size > s.options.MaxUpload {
		return nil, s.tooLarge(stream.name, stream.size)
	}
	switch {
	case stream.size < 0:
		return s.measure(stream, service, digest)
	case stream.size <= bufferLimit:
		return buffer(stream, digest)
	default:
		return &Content{Size: stream.size, Body: newVerifier(stream, digest)}, nil
	}
}

// inMemory is a verified content. The embedded reader makes it seekable.
type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

func buffer(stream *stream, digest []byte) (*Content, error) {
	content := make([]byte, stream.size)
	if err := stream.readLast(content); err != nil {
		return nil, err
	}
	if digest != nil {
		sum := sha256.New()
		sum.Write(content)
		if err := checkDigest(stream.name, sum, digest); err != nil {
			return nil, err
		}
	}
	stream.body.Close()
	return &Content{Size: stream.size, Body: inMemory{bytes.NewReader(content)}}, nil
}

// readLast fills p with what is left of the stream, and makes sure that nothing
// follows.
func (s *stream) readLast(p []byte) error {
	n, err := io.ReadFull(s.body, p)
	switch err {
	case nil:
	case io.EOF, io.ErrUnexpectedEOF:
		return s.short(int64(len(p) - n))
	default:
		return err
	}
	switch _, err := io.ReadFull(s.body, make([]byte, 1)); err {
	case io.EOF:
		return nil
	case nil:
		return sizeMismatch("%s goes on beyond its %d bytes", s.name, s.size)
	default:
		return err
	}
}

func (s *stream) short(missing int64) error {
	if s.openEnded {
		return unavailable("%s broke off after %d of its %d bytes, or is shorter than the event says: it tells no length itself", s.name, s.size-missing, s.size)
	}
	return sizeMismatch("%s ended after %d of its %d bytes", s.name, s.size-missing, s.size)
}

// measure reads a stream of unknown length to its end: into memory while that
// suffices, then into a file that has no name.
func (s *Sources) measure(stream *stream, service string, digest []byte) (*Content, error) {
	sum := sha256.New()
	// One byte above the limit tells "too large" from "just fits".
	source := io.TeeReader(io.LimitReader(stream.body, s.options.MaxUpload+1), sum)
	head, err := io.ReadAll(io.LimitReader(source, bufferLimit+1))
	if err != nil {
		return nil, err
	}
	size := int64(len(head))
	body := io.ReadCloser(inMemory{bytes.NewReader(head)})
	if size > bufferLimit && size <= s.options.MaxUpload {
		if body, size, err = s.spool(service, head, source); err != nil {
			return nil, spoolFailed(stream.name, err)
		}
	}
	if err := s.checkMeasured(stream, size, sum, digest); err != nil {
		body.Close()
		return nil, err
	}
	stream.body.Close()
	return &Content{Size: size, Body: body}, nil
}

func (s *Sources) checkMeasured(stream *stream, size int64, sum hash.Hash, digest []byte) error {
	if size > s.options.MaxUpload {
		return failure.New(failure.Permanent, failure.TooLarge, "%s goes on beyond the upload limit of %d bytes", stream.name, s.options.MaxUpload)
	}
	err := checkDigest(stream.name, sum, digest)
	if err != nil && stream.openEnded {
		return unavailable("%s broke off after %d bytes, or has others than the event's checksum says: it tells no length itself", stream.name, size)
	}
	return err
}

func sizeMismatch(format string, args ...any) *failure.Error {
	return failure.New(failure.Permanent, failure.SizeMismatch, format, args...)
}

func checkDigest(name string, sum hash.Hash, want []byte) error {
	if want == nil {
		return nil
	}
	got := sum.Sum(nil)
	if bytes.Equal(got, want) {
		return nil
	}
	return failure.New(failure.Permanent, failure.ChecksumMismatch, "%s has the SHA-256 %x, but the event says %x", name, got, want)
}

// verifier passes a stream through but withholds its last bytes until the
// source has ended exactly at its size and the digest matches.
type verifier struct {
	stream *stream
	digest []byte    // nil: not checked
	sum    hash.Hash // nil likewise

	open     int64  // bytes that may still be passed on unverified
	withheld int64  // bytes that may not
	tail     []byte // those, once verified
	verified bool
	err      error // what every further Read returns
}

func newVerifier(stream *stream, digest []byte) *verifier {
	withheld := min(stream.size, withheldLimit)
	v := &verifier{stream: stream, digest: digest, open: stream.size - withheld, withheld: withheld}
	if digest != nil {
		v.sum = sha256.New()
	}
	return v
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil || len(p) == 0 {
		return 0, v.err
	}
	if v.open > 0 {
		return v.pass(p)
	}
	if !v.verified {
		if v.err = v.verify(); v.err != nil {
			return 0, v.err
		}
		v.verified = true
	}
	if len(v.tail) == 0 {
		return 0, io.EOF
	}
	n := copy(p, v.tail)
	v.tail = v.tail[n:]
	return n, nil
}

func (v *verifier) pass(p []byte) (int, error) {
	n, err := v.stream.body.Read(p[:min(int64(len(p)), v.open)])
	if v.sum != nil {
		v.sum.Write(p[:n])
	}
	v.open -= int64(n)
	if errors.Is(err, io.EOF) {
		err = v.stream.short(v.open + v.withheld)
	}
	v.err = err
	return n, err
}

// verify reads what is withheld, and on to the end of the source.
func (v *verifier) verify() error {
	tail := make([]byte, v.withheld)
	if err := v.stream.readLast(tail); err != nil {
		return err
	}
	if v.sum != nil {
		v.sum.Write(tail)
		if err := checkDigest(v.stream.name, v.sum, v.digest); err != nil {
			return err
		}
	}
	v.tail = tail
	return nil
}

func (v *verifier) Close() error { return v.stream.body.Close() }
