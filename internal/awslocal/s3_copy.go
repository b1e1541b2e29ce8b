package awslocal

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"time"
)

var copyObject = operation{"s3:CopyObject", permitCopy, runCopy}

const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

// copySource is a COPY's x-amz-copy-source, decoded: "bucket/key" with an
// optional leading slash.
func (s *Server) copySource(c *call) (*bucket, string, error) {
	source, err := url.PathUnescape(c.r.Header.Get("X-Amz-Copy-Source"))
	name, key, ok := strings.Cut(strings.TrimPrefix(source, "/"), "/")
	if err != nil || !ok || name == "" || key == "" {
		return nil, "", invalidArgument("Invalid copy source object key")
	}
	s.store.mu.Lock()
	from := s.store.buckets[name]
	s.store.mu.Unlock()
	if from == nil {
		return nil, "", fail(http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist").with("BucketName", name)
	}
	return from, key, nil
}

func permitCopy(s *Server, c *call) error {
	if err := s.permitWrite(c); err != nil {
		return err
	}
	from, key, err := s.copySource(c)
	if err != nil {
		return err
	}
	if owner := c.r.Header.Get("X-Amz-Source-Expected-Bucket-Owner"); owner != "" && owner != from.owner {
		return refuse(http.StatusForbidden, "AccessDenied", "Access Denied").
			because("the source bucket %s belongs to account %s, not to the expected %s", from.name, from.owner, owner)
	}
	needs := []access{c.objectAccess(from, "s3:GetObject", key)}
	if from.kmsKey != "" {
		needs = append(needs, c.keyAccess(from, "kms:Decrypt"))
	}
	if s.hasTags(from, key) && c.r.Header.Get("X-Amz-Tagging-Directive") != "REPLACE" {
		needs = append(needs, c.objectAccess(from, "s3:GetObjectTagging", key), c.objectAccess(c.bucket, "s3:PutObjectTagging", c.Key))
	}
	if err := c.authorizeAll(needs...); err != nil {
		return err
	}
	replace := c.r.Header.Get("X-Amz-Metadata-Directive") == "REPLACE"
	if from == c.bucket && key == c.Key && !replace {
		return invalidRequest("This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	return nil
}

func (s *Server) hasTags(b *bucket, key string) bool {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	o := b.objects[key]
	return o != nil && len(o.tags) > 0
}

func runCopy(s *Server, c *call) (*response, error) {
	from, key, err := s.copySource(c)
	if err != nil {
		return nil, err
	}
	source := s.hold(from, key)
	if source == nil {
		if err := c.authorizeAll(c.bucketAccess(from, "s3:ListBucket")); err != nil {
			return nil, err
		}
		return nil, noSuchKey(key)
	}
	defer source.body.release()
	header := c.r.Header
	if ifMatch := header.Get("X-Amz-Copy-Source-If-Match"); ifMatch != "" && !sameETag(ifMatch, source.etag) {
		return nil, preconditionFailed("x-amz-copy-source-If-Match")
	}
	if ifNone := header.Get("X-Amz-Copy-Source-If-None-Match"); ifNone != "" && sameETag(ifNone, source.etag) {
		return nil, preconditionFailed("x-amz-copy-source-If-None-Match")
	}
	if source.body.size > maxPut {
		return nil, invalidRequest("The specified copy source is larger than the maximum allowable size for a copy source: %d", maxPut)
	}
	target := s.copied(c, source)
	// The lock isn't held between looking at the source and writing the
	// target: like S3's own, a copy takes the source as it was when it began.
	if err := s.commit(c, target); err != nil {
		return nil, err
	}
	return copyResponse(c.bucket, target), nil
}

// copied is the object that a copy makes of its source.
func (s *Server) copied(c *call, source *object) *object {
	header := c.r.Header
	target := *source
	target.key, target.modified = c.Key, s.now()
	// What was a multipart object becomes a single part, its ETag the MD5.
	target.etag = c.bucket.newETag(source.body)
	if header.Get("X-Amz-Metadata-Directive") == "REPLACE" {
		target.metadata, target.system = metadataOf(header), systemHeaders(header)
		target.contentType = header.Get("Content-Type")
		if target.contentType == "" {
			target.contentType = "binary/octet-stream"
		}
	}
	if header.Get("X-Amz-Tagging-Directive") == "REPLACE" {
		target.tags = tagsOf(header)
	}
	if algorithm := header.Get("X-Amz-Checksum-Algorithm"); algorithm != "" {
		target.checksum = algorithm
	}
	return &target
}

func copyResponse(b *bucket, o *object) *response {
	sum, _ := o.body.sums.of(o.checksum)
	res := xmlResponse(http.StatusOK, struct {
		XMLName      xml.Name `xml:"CopyObjectResult"`
		Namespace    string   `xml:"xmlns,attr"`
		LastModified string
		ETag         string
		Checksum     xmlField
	}{
		Namespace: s3Namespace, LastModified: o.modified.Format(time.RFC3339), ETag: o.etag,
		Checksum: xmlField{xml.Name{Local: "Checksum" + o.checksum}, base64.StdEncoding.EncodeToString(sum)},
	})
	b.showEncryption(res.header)
	return res
}
