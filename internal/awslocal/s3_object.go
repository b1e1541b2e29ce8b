package awslocal

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

var (
	putObject    = operation{"s3:PutObject", permitPut, runPut}
	getObject    = operation{"s3:GetObject", permitGet, runGet}
	headObject   = operation{"s3:HeadObject", permitGet, runGet}
	deleteObject = operation{"s3:DeleteObject", permitDelete, runDelete}
)

const (
	metaPrefix = "X-Amz-Meta-"
	// maxMetadata is the sum of names and values, in bytes.
	maxMetadata = 2 << 10
)

// permitWrite checks what PUT and COPY have in common.
func (s *Server) permitWrite(c *call) error {
	if err := s.enterObject(c); err != nil {
		return err
	}
	header := c.r.Header
	needs := []access{c.objectAccess(c.bucket, "s3:PutObject", c.Key)}
	if header.Get("If-Match") != "" {
		needs = append(needs, c.objectAccess(c.bucket, "s3:GetObject", c.Key))
	}
	if header.Get("X-Amz-Tagging") != "" {
		needs = append(needs, c.objectAccess(c.bucket, "s3:PutObjectTagging", c.Key))
	}
	if c.bucket.kmsKey != "" {
		needs = append(needs, c.keyAccess(c.bucket, "kms:GenerateDataKey"))
	}
	if err := c.authorizeAll(needs...); err != nil {
		return err
	}
	if err := c.keyDenied(c.Key, "kms:GenerateDataKey"); err != nil {
		return err
	}
	return checkWriteHeaders(header)
}

func checkWriteHeaders(header http.Header) error {
	size := 0
	for name, values := range header {
		if name == "X-Amz-Acl" || strings.HasPrefix(name, "X-Amz-Grant-") {
			return fail(http.StatusBadRequest, "AccessControlListNotSupported", "The bucket does not allow ACLs")
		}
		if meta, ok := strings.CutPrefix(name, metaPrefix); ok {
			size += len(meta) + len(values[0])
		}
	}
	if size > maxMetadata {
		return fail(http.StatusBadRequest, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size").
			with("Size", strconv.Itoa(size), "MaxSizeAllowed", strconv.Itoa(maxMetadata))
	}
	ifMatch, ifNoneMatch := header.Get("If-Match"), header.Get("If-None-Match")
	if ifNoneMatch != "" && ifNoneMatch != "*" || ifMatch == "*" || ifMatch != "" && ifNoneMatch != "" {
		return notImplemented("If-Match or If-None-Match of this kind")
	}
	return nil
}

// keyDenied is the KMS key that a test switched off for single objects.
func (c *call) keyDenied(key, action string) error {
	if !c.bucket.rules.Load().kmsDenied[key] {
		return nil
	}
	return refuse(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: %s on the resource associated with this ciphertext because no resource-based policy allows the %s action", c.caller.arn, action, action)
}

func permitPut(s *Server, c *call) error { return s.permitWrite(c) }

func runPut(s *Server, c *call) (*response, error) {
	o := &object{key: c.Key, body: c.body, contentType: c.r.Header.Get("Content-Type"), modified: s.now(),
		metadata: metadataOf(c.r.Header), tags: tagsOf(c.r.Header), system: systemHeaders(c.r.Header), checksum: sentChecksum(c.r.Header)}
	if o.contentType == "" {
		o.contentType = "binary/octet-stream"
	}
	o.etag = c.bucket.newETag(c.body)
	if err := s.commit(c, o); err != nil {
		return nil, err
	}
	res := &response{status: http.StatusOK, header: http.Header{"Etag": {o.etag}}}
	o.showChecksum(res.header)
	c.bucket.showEncryption(res.header)
	return res, nil
}

// commit puts the object in its place if the call's conditions hold.
func (s *Server) commit(c *call, o *object) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	err := checkWrite(o.key, c.bucket.objects[o.key], c.r.Header.Get("If-Match"), c.r.Header.Get("If-None-Match"))
	if err != nil {
		return err
	}
	o.body.retain()
	c.bucket.put(o)
	return nil
}

func metadataOf(header http.Header) map[string]string {
	metadata := map[string]string{}
	for name, values := range header {
		if meta, ok := strings.CutPrefix(name, metaPrefix); ok {
			metadata[strings.ToLower(meta)] = strings.Join(values, ",")
		}
	}
	return metadata
}

func tagsOf(header http.Header) map[string]string {
	tags := map[string]string{}
	query, _ := url.ParseQuery(header.Get("X-Amz-Tagging"))
	for name := range query {
		tags[name] = query.Get(name)
	}
	return tags
}

func systemHeaders(header http.Header) map[string]string {
	kept := map[string]string{}
	for _, name := range []string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"} {
		if value := header.Get(name); value != "" && value != "aws-chunked" {
			kept[name] = strings.TrimPrefix(value, "aws-chunked,")
		}
	}
	return kept
}

// sentChecksum is the algorithm of the checksum that came with a PUT.
func sentChecksum(header http.Header) string {
	for _, algorithm := range []string{"Sha256", "Crc32", "Crc32c"} {
		name := checksumHeaderPrefix + algorithm
		if header.Get(name) != "" || strings.EqualFold(header.Get("X-Amz-Trailer"), name) {
			return strings.ToUpper(algorithm)
		}
	}
	return "CRC64NVME"
}

func (o *object) showChecksum(header http.Header) {
	sum, _ := o.body.sums.of(o.checksum)
	header.Set(checksumHeaderPrefix+o.checksum, base64.StdEncoding.EncodeToString(sum))
	header.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
}

func (b *bucket) showEncryption(header http.Header) {
	if b.kmsKey == "" {
		header.Set("X-Amz-Server-Side-Encryption", "AES256")
		return
	}
	header.Set("X-Amz-Server-Side-Encryption", "aws:kms")
	header.Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", b.kmsKey)
}

func permitGet(s *Server, c *call) error {
	if err := s.enterObject(c); err != nil {
		return err
	}
	needs := []access{c.objectAccess(c.bucket, "s3:GetObject", c.Key)}
	if c.bucket.kmsKey != "" {
		needs = append(needs, c.keyAccess(c.bucket, "kms:Decrypt"))
	}
	if err := c.authorizeAll(needs...); err != nil {
		return err
	}
	return c.keyDenied(c.Key, "kms:Decrypt")
}

// missing is the answer for a key that isn't there: only who may list the
// bucket is told so.
func (c *call) missing(key string) error {
	if err := c.authorizeAll(c.bucketAccess(c.bucket, "s3:ListBucket")); err != nil {
		return err
	}
	return noSuchKey(key)
}

// hold returns the object with its body held for the caller, nil if missing.
func (s *Server) hold(b *bucket, key string) *object {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	o := b.objects[key]
	if o != nil {
		o.body.retain()
	}
	return o
}

func runGet(s *Server, c *call) (*response, error) {
	o := s.hold(c.bucket, c.Key)
	if o == nil {
		return nil, c.missing(c.Key)
	}
	defer o.body.release()
	if ifMatch := c.r.Header.Get("If-Match"); ifMatch != "" && !sameETag(ifMatch, o.etag) {
		return nil, preconditionFailed("If-Match")
	}
	if ifNoneMatch := c.r.Header.Get("If-None-Match"); ifNoneMatch != "" && sameETag(ifNoneMatch, o.etag) {
		return nil, fail(http.StatusNotModified, "NotModified", "Not Modified").withHeader("ETag", o.etag)
	}
	res := &response{status: http.StatusOK, header: o.header(), length: o.body.size}
	c.bucket.showEncryption(res.header)
	start, length, ranged, err := byteRange(c.r.Header.Get("Range"), o.body.size)
	if err != nil {
		return nil, err
	}
	if ranged {
		res.status, res.length = http.StatusPartialContent, length
		res.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+length-1, o.body.size))
	} else if strings.EqualFold(c.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		o.showChecksum(res.header)
	}
	res.header.Set("Content-Length", strconv.FormatInt(res.length, 10))
	if c.r.Method == http.MethodHead {
		return res, nil
	}
	// The open file outlives the object, should it be deleted meanwhile.
	content, err := o.body.open()
	if err != nil {
		return nil, err
	}
	if _, err := content.Seek(start, io.SeekStart); err != nil {
		return nil, err
	}
	res.stream = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(content, res.length), content}
	return res, nil
}

func (o *object) header() http.Header {
	header := http.Header{}
	header.Set("ETag", o.etag)
	header.Set("Content-Type", o.contentType)
	header.Set("Last-Modified", o.modified.Format(http.TimeFormat))
	header.Set("Accept-Ranges", "bytes")
	for name, value := range o.system {
		header.Set(name, value)
	}
	for name, value := range o.metadata {
		header.Set(metaPrefix+name, value)
	}
	if len(o.tags) > 0 {
		header.Set("X-Amz-Tagging-Count", strconv.Itoa(len(o.tags)))
	}
	return header
}

// byteRange reads a single range; what isn't one is ignored, as RFC 9110 says.
func byteRange(value string, size int64) (start, length int64, ranged bool, err error) {
	spec, ok := strings.CutPrefix(value, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	from, errFrom := strconv.ParseInt(first, 10, 64)
	to, errTo := strconv.ParseInt(last, 10, 64)
	switch {
	case first == "" && errTo == nil:
		from, to = max(0, size-to), size-1
	case errFrom == nil && last == "":
		to = size - 1
	case errFrom != nil || errTo != nil || to < from:
		return 0, size, false, nil //nolint:nilerr // S3 ignores a range that it can't read
	}
	if from >= size {
		return 0, 0, false, fail(http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The requested range is not satisfiable")
	}
	return from, min(to, size-1) - from + 1, true, nil
}

func permitDelete(s *Server, c *call) error {
	if err := s.enterObject(c); err != nil {
		return err
	}
	return c.permitDeleteOf(c.Key, c.r.Header.Get("If-Match"))
}

func (c *call) permitDeleteOf(key, ifMatch string) error {
	needs := []access{c.objectAccess(c.bucket, "s3:DeleteObject", key)}
	if ifMatch != "" {
		needs = append(needs, c.objectAccess(c.bucket, "s3:GetObject", key))
	}
	return c.authorizeAll(needs...)
}

func runDelete(s *Server, c *call) (*response, error) {
	if err := s.remove(c.bucket, c.Key, c.r.Header.Get("If-Match")); err != nil {
		return nil, err
	}
	return &response{status: http.StatusNoContent, header: http.Header{}}, nil
}

func (s *Server) remove(b *bucket, key, ifMatch string) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if err := checkDelete(key, b.objects[key], ifMatch); err != nil {
		return err
	}
	b.remove(key)
	return nil
}
