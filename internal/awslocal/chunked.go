package awslocal

import (
	"bufio"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// chunkReader decodes an aws-chunked body: chunks, each led by its length in
// hex, the last one empty, then trailers.
type chunkReader struct {
	from     *bufio.Reader
	left     int64 // of the current chunk
	ended    bool
	trailers http.Header
}

func newChunkReader(from io.Reader) *chunkReader {
	return &chunkReader{from: bufio.NewReader(from), trailers: http.Header{}}
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if c.left == 0 && !c.ended {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if c.ended {
		return 0, io.EOF
	}
	n, err := c.from.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err != nil {
		return n, unexpected(err)
	}
	if c.left == 0 {
		return n, c.lineEnd()
	}
	return n, nil
}

// next reads a chunk's length, and after the last chunk the trailers.
func (c *chunkReader) next() error {
	line, err := c.line()
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(line, 16, 64)
	if err != nil || size < 0 {
		return malformedChunk()
	}
	if size == 0 {
		c.ended = true
		return c.readTrailers()
	}
	c.left = size
	return nil
}

func (c *chunkReader) readTrailers() error {
	for {
		line, err := c.line()
		if err != nil || line == "" {
			return err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return malformedChunk()
		}
		c.trailers.Set(name, strings.TrimSpace(value))
	}
}

func (c *chunkReader) line() (string, error) {
	line, err := c.from.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		return "", malformedChunk()
	}
	if err != nil {
		return "", unexpected(err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r"), nil
}

func (c *chunkReader) lineEnd() error {
	line, err := c.line()
	if err == nil && line != "" {
		err = malformedChunk()
	}
	return err
}

func malformedChunk() error {
	return invalidRequest("The body is not well-formed aws-chunked.")
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
