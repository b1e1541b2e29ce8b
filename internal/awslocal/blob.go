package awslocal

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"os"
	"sync/atomic"
)

// inMemory is the size up to which bytes aren't worth a file.
const inMemory = 64 << 10

// blob is bytes that don't change, in memory or in a file, shared by the
// objects that were copied from each other. It is freed with its last
// reference.
type blob struct {
	refs   atomic.Int64
	memory []byte
	file   string // when not in memory
	size   int64
	sums   checksums
}

// checksums are those of a blob; raw, not encoded.
type checksums struct {
	md5, sha256, crc32, crc32c, crc64 []byte
}

func (b *blob) retain() *blob {
	b.refs.Add(1)
	return b
}

func (b *blob) release() {
	if b.refs.Add(-1) == 0 && b.file != "" {
		_ = os.Remove(b.file)
	}
}

// bytes reads a small blob whole.
func (b *blob) bytes() []byte {
	if b.file == "" {
		return b.memory
	}
	content, err := os.ReadFile(b.file)
	if err != nil {
		panic(fmt.Sprintf("awslocal: a stored object's file is gone: %v", err))
	}
	return content
}

func (b *blob) open() (io.ReadSeekCloser, error) {
	if b.file == "" {
		return memoryReader{bytes.NewReader(b.memory)}, nil
	}
	return os.Open(b.file)
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

// digest sums bytes on their way into a blob.
type digest struct {
	md5, sha256, crc32, crc32c, crc64 hash.Hash
}

// nvme is the polynomial of x-amz-checksum-crc64nvme, which S3 computes where
// the client sent no checksum.
var (
	nvme       = crc64.MakeTable(0x9A6C9329AC4BC9B5)
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func newDigest() *digest {
	return &digest{md5.New(), sha256.New(), crc32.NewIEEE(), crc32.New(castagnoli), crc64.New(nvme)}
}

func (d *digest) Write(p []byte) (int, error) {
	d.md5.Write(p)
	d.sha256.Write(p)
	d.crc32.Write(p)
	d.crc32c.Write(p)
	d.crc64.Write(p)
	return len(p), nil
}

func (d *digest) sums() checksums {
	return checksums{d.md5.Sum(nil), d.sha256.Sum(nil), d.crc32.Sum(nil), d.crc32c.Sum(nil), d.crc64.Sum(nil)}
}

// spool stores what a reader gives. The caller holds the one reference.
func (s *Server) spool(from io.Reader) (*blob, error) {
	sums := newDigest()
	from = io.TeeReader(from, sums)
	var head bytes.Buffer
	size, err := io.CopyN(&head, from, inMemory+1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	b := &blob{memory: bytes.Clone(head.Bytes())}
	b.refs.Store(1)
	if size > inMemory {
		if size, err = b.toFile(s.dir, io.MultiReader(&head, from)); err != nil {
			return nil, err
		}
	}
	b.size, b.sums = size, sums.sums()
	return b, nil
}

func (b *blob) toFile(dir string, from io.Reader) (int64, error) {
	file, err := os.CreateTemp(dir, "object-")
	if err != nil {
		return 0, err
	}
	size, err := io.Copy(file, from)
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return 0, err
	}
	b.memory, b.file = nil, file.Name()
	return size, nil
}
