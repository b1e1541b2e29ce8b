package awslocal

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"time"
)

// BucketOptions describe a bucket.
type BucketOptions struct {
	// Region is "us-east-1" when empty.
	Region string
	// OwnerAccount is the operator's when empty.
	OwnerAccount string
	// Public lets anyone GET objects, as the manual's bucket policy does.
	Public bool
	// Policy is the bucket policy; it excludes Public.
	Policy string
	// KMSKey is the ARN of a KMS key that the bucket encrypts with: writing
	// then needs kms:GenerateDataKey on it and reading kms:Decrypt, and ETags
	// aren't MD5.
	KMSKey string
	// Domains are host names, without a port, that deliver the bucket.
	Domains []string
}

// CreateBucket makes a bucket.
func (s *Server) CreateBucket(name string, options BucketOptions) error {
	if options.Public && options.Policy != "" {
		return fmt.Errorf("awslocal: bucket %s is to be public and has a policy: choose one", name)
	}
	if options.Public {
		options.Policy = PublicBucketPolicy(name, "")
	}
	rules := &bucketRules{}
	if options.Policy != "" {
		var err error
		if rules.policy, err = parsePolicy(options.Policy, resourcePolicy); err != nil {
			return fmt.Errorf("awslocal: policy of bucket %s: %w", name, err)
		}
	}
	b := &bucket{
		name: name, region: cmp.Or(options.Region, "us-east-1"), owner: cmp.Or(options.OwnerAccount, s.config.OperatorAccount),
		kmsKey: options.KMSKey, objects: map[string]*object{},
	}
	b.rules.Store(rules)
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if s.store.buckets[name] != nil {
		return fmt.Errorf("awslocal: bucket %s exists", name)
	}
	s.store.buckets[name] = b
	for _, host := range options.Domains {
		s.store.domains[host] = b
	}
	return nil
}

// DeleteBucket removes a bucket with all that is in it.
func (s *Server) DeleteBucket(name string) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[name]
	if b == nil {
		return
	}
	for key := range b.objects {
		b.remove(key)
	}
	delete(s.store.buckets, name)
	maps.DeleteFunc(s.store.domains, func(_ string, delivered *bucket) bool { return delivered == b })
}

// SetBucketPolicy replaces a bucket's policy; empty removes it.
func (s *Server) SetBucketPolicy(name, text string) error {
	b, err := s.bucketNamed(name)
	if err != nil {
		return err
	}
	changed := *b.rules.Load()
	changed.policy = nil
	if text != "" {
		if changed.policy, err = parsePolicy(text, resourcePolicy); err != nil {
			return fmt.Errorf("awslocal: policy of bucket %s: %w", name, err)
		}
	}
	b.rules.Store(&changed)
	return nil
}

// DenyKMS makes the KMS key of the named objects refuse everyone; without
// keys, it ends that.
func (s *Server) DenyKMS(name string, keys ...string) error {
	b, err := s.bucketNamed(name)
	if err != nil {
		return err
	}
	changed := *b.rules.Load()
	changed.kmsDenied = map[string]bool{}
	for _, key := range keys {
		changed.kmsDenied[key] = true
	}
	b.rules.Store(&changed)
	return nil
}

func (s *Server) bucketNamed(name string) (*bucket, error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[name]
	if b == nil {
		return nil, fmt.Errorf("awslocal: no bucket %s", name)
	}
	return b, nil
}

// Object is what a bucket holds at a key.
type Object struct {
	Key         string
	Size        int64
	ETag        string // quoted
	ContentType string
	Metadata    map[string]string
	Tags        map[string]string
	// SHA256 and MD5 are those of the content, in hex.
	SHA256, MD5 string
	Modified    time.Time

	body *blob
}

// Open reads the content. It fails once the object was replaced or deleted.
func (o Object) Open() (io.ReadCloser, error) { return o.body.open() }

// ErrNoObject is GetDirect's answer for a missing key.
var ErrNoObject = errors.New("awslocal: no such object")

// Objects lists a bucket in key order; a bucket that doesn't exist is empty.
func (s *Server) Objects(name string) []Object {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[name]
	if b == nil {
		return nil
	}
	var listed []Object
	for _, key := range b.keys() {
		if o := b.objects[key]; o != nil {
			listed = append(listed, o.snapshot())
		}
	}
	return listed
}

// Keys lists a bucket's keys in order.
func (s *Server) Keys(name string) []string {
	keys := []string{}
	for _, o := range s.Objects(name) {
		keys = append(keys, o.Key)
	}
	return keys
}

func (o *object) snapshot() Object {
	return Object{
		Key: o.key, Size: o.body.size, ETag: o.etag, ContentType: o.contentType,
		Metadata: maps.Clone(o.metadata), Tags: maps.Clone(o.tags),
		SHA256: hex.EncodeToString(o.body.sums.sha256), MD5: hex.EncodeToString(o.body.sums.md5),
		Modified: o.modified, body: o.body,
	}
}

// Stranger describes an object that somebody other than a caller of the API
// puts into a bucket.
type Stranger struct {
	ContentType string
	Metadata    map[string]string
	Tags        map[string]string
	// ETag stands in for the content's MD5: that of a multipart upload.
	ETag string
}

// PutDirect writes an object past all rights and conditions.
func (s *Server) PutDirect(name, key string, content []byte, options Stranger) (Object, error) {
	return s.PutDirectFrom(name, key, bytes.NewReader(content), options)
}

// PutDirectFrom is PutDirect for content that memory doesn't hold.
func (s *Server) PutDirectFrom(name, key string, content io.Reader, options Stranger) (Object, error) {
	b, err := s.bucketNamed(name)
	if err != nil {
		return Object{}, err
	}
	body, err := s.spool(content)
	if err != nil {
		return Object{}, fmt.Errorf("awslocal: store %s/%s: %w", name, key, err)
	}
	o := &object{
		key: key, body: body, etag: cmp.Or(options.ETag, b.newETag(body)),
		contentType: cmp.Or(options.ContentType, "binary/octet-stream"),
		metadata:    maps.Clone(options.Metadata), tags: maps.Clone(options.Tags),
		modified: s.now(), checksum: "CRC64NVME",
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b.put(o)
	return o.snapshot(), nil
}

// DeleteDirect removes an object past all rights and conditions.
func (s *Server) DeleteDirect(name, key string) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if b := s.store.buckets[name]; b != nil {
		b.remove(key)
	}
}

// GetDirect reads an object past all rights; ErrNoObject when there is none.
func (s *Server) GetDirect(name, key string) (Object, []byte, error) {
	b, err := s.bucketNamed(name)
	if err != nil {
		return Object{}, nil, err
	}
	o := s.hold(b, key)
	if o == nil {
		return Object{}, nil, ErrNoObject
	}
	defer o.body.release()
	return o.snapshot(), o.body.bytes(), nil
}

// ObjectURL is the plain URL of an object on this server, as the manual's
// public bucket serves it without a custom domain.
func (s *Server) ObjectURL(bucket, key string) string {
	return s.endpoint + "/" + url.PathEscape(bucket) + "/" + escape(key, true)
}
