package awslocal

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

const (
	// maxPut is what one PUT or COPY takes.
	maxPut = 5 << 30
	// maxDocument bounds a body that is arguments, not an object.
	maxDocument = 4 << 20

	unsignedPayload         = "UNSIGNED-PAYLOAD"
	unsignedPayloadTrailer  = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	contentSHA256Header     = "X-Amz-Content-Sha256"
	decodedLengthHeader     = "X-Amz-Decoded-Content-Length"
	checksumHeaderPrefix    = "X-Amz-Checksum-"
	incompleteBodyMessage   = "You did not provide the number of bytes specified by the Content-Length HTTP header"
	checksumMismatchMessage = "The %s you specified did not match the calculated checksum."
)

// receiveDocument reads the body of a call that isn't S3's.
func (s *Server) receiveDocument(c *call) error {
	body, err := s.spool(io.LimitReader(c.r.Body, maxDocument))
	if err != nil {
		return errGone
	}
	c.body = body
	return nil
}

// receive takes an S3 call's body whole and verifies all that was said of it,
// so that nothing unverified ever has an effect.
func (s *Server) receive(c *call) error {
	header := c.r.Header
	payload := header.Get(contentSHA256Header)
	want := c.r.ContentLength
	from := io.Reader(c.r.Body)
	var chunks *chunkReader
	if strings.HasPrefix(payload, "STREAMING-") {
		if payload != unsignedPayloadTrailer {
			return notImplemented("x-amz-content-sha256: " + payload)
		}
		decoded, err := strconv.ParseInt(header.Get(decodedLengthHeader), 10, 64)
		if err != nil {
			return fail(http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
		}
		want = decoded
		chunks = newChunkReader(c.r.Body)
		from = chunks
	}
	if want < 0 {
		return fail(http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
	}
	if want > maxPut {
		return fail(http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	}
	body, err := s.spool(from)
	if err != nil {
		return bodyError(err)
	}
	c.body = body
	if body.size != want {
		return fail(http.StatusBadRequest, "IncompleteBody", incompleteBodyMessage)
	}
	var trailers http.Header
	if chunks != nil {
		trailers = chunks.trailers
	} else if payload != "" && payload != unsignedPayload && payload != hex.EncodeToString(body.sums.sha256) {
		return fail(http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	return verifyChecksums(header, trailers, body.sums)
}

func bodyError(err error) error {
	var known *apiError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fail(http.StatusBadRequest, "IncompleteBody", incompleteBodyMessage)
	}
	return errGone
}

// of returns a supported algorithm's sum.
func (sums checksums) of(algorithm string) ([]byte, bool) {
	switch strings.ToUpper(algorithm) {
	case "SHA256":
		return sums.sha256, true
	case "CRC32":
		return sums.crc32, true
	case "CRC32C":
		return sums.crc32c, true
	case "CRC64NVME":
		return sums.crc64, true
	}
	return nil, false
}

func verifyChecksums(header, trailers http.Header, sums checksums) error {
	if given := header.Get("Content-Md5"); given != "" {
		raw, err := base64.StdEncoding.DecodeString(given)
		if err != nil || len(raw) != len(sums.md5) {
			return fail(http.StatusBadRequest, "InvalidDigest", "The Content-MD5 you specified was invalid.")
		}
		if !hmac.Equal(raw, sums.md5) {
			return fail(http.StatusBadRequest, "BadDigest", checksumMismatchMessage, "Content-MD5")
		}
	}
	if announced := header.Get("X-Amz-Trailer"); announced != "" && trailers.Get(announced) == "" {
		return fail(http.StatusBadRequest, "MalformedTrailerError", "The request contained trailing data that was not well-formed or did not conform to our published schema.")
	}
	for _, source := range []http.Header{header, trailers} {
		for name, values := range source {
			given, ok := strings.CutPrefix(name, checksumHeaderPrefix)
			if !ok || given == "Algorithm" || given == "Mode" || given == "Type" {
				continue
			}
			sum, ok := sums.of(given)
			if !ok {
				return notImplemented("checksum " + given)
			}
			raw, err := base64.StdEncoding.DecodeString(values[0])
			if err != nil || len(raw) != len(sum) {
				return invalidRequest("Value for %s header is invalid.", strings.ToLower(name))
			}
			if !hmac.Equal(raw, sum) {
				return fail(http.StatusBadRequest, "BadDigest", checksumMismatchMessage, strings.ToUpper(given))
			}
		}
	}
	return nil
}
