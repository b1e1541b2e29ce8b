package awslocal

import (
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// routeS3 finds bucket, key and operation of a request.
func (s *Server) routeS3(c *call) (*operation, error) {
	if !utf8.ValidString(c.r.URL.Path) {
		return nil, fail(http.StatusBadRequest, "InvalidURI", "Couldn't parse the specified URI.")
	}
	c.Bucket, c.Key = s.address(c.r)
	switch {
	case c.Bucket == "":
		return unserved(c.r.Method, "s3:ListBuckets", "s3:ListAllMyBuckets"), nil
	case c.Key == "":
		return routeBucket(c)
	}
	return routeObject(c)
}

// amazonHost is a bucket's own host name at Amazon S3.
var amazonHost = regexp.MustCompile(`^(.+)\.s3(?:\.[a-z0-9-]+)?\.amazonaws\.com$`)

// address takes bucket and key from the host name or, failing that, the path.
func (s *Server) address(r *http.Request) (bucketName, key string) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	s.store.mu.Lock()
	delivered := s.store.domains[host]
	s.store.mu.Unlock()
	if delivered != nil {
		return delivered.name, path
	}
	if match := amazonHost.FindStringSubmatch(host); match != nil {
		return match[1], path
	}
	if name, ok := strings.CutSuffix(host, ".localhost"); ok {
		return strings.TrimSuffix(name, ".s3"), path
	}
	bucketName, key, _ = strings.Cut(path, "/")
	return bucketName, key
}

// sub is an S3 operation that is told by a query parameter, and that this
// stand-in authorises but doesn't do: nothing of ours may need it.
type sub struct {
	query, method, api string
	// action is the permission, where it isn't named like the API.
	action string
}

var objectSubs = []sub{
	{"acl", "GET", "GetObjectAcl", ""},
	{"acl", "PUT", "PutObjectAcl", ""},
	{"tagging", "GET", "GetObjectTagging", ""},
	{"tagging", "PUT", "PutObjectTagging", ""},
	{"tagging", "DELETE", "DeleteObjectTagging", ""},
	{"annotation", "GET", "GetObjectAnnotation", ""},
	{"annotation", "PUT", "PutObjectAnnotation", ""},
	{"annotation", "DELETE", "DeleteObjectAnnotation", ""},
	{"attributes", "GET", "GetObjectAttributes", ""},
	{"retention", "GET", "GetObjectRetention", ""},
	{"retention", "PUT", "PutObjectRetention", ""},
	{"legal-hold", "GET", "GetObjectLegalHold", ""},
	{"legal-hold", "PUT", "PutObjectLegalHold", ""},
	{"restore", "POST", "RestoreObject", ""},
	{"renameObject", "PUT", "RenameObject", "PutObject"},
	{"uploads", "POST", "CreateMultipartUpload", "PutObject"},
	{"uploadId", "PUT", "UploadPart", "PutObject"},
	{"uploadId", "POST", "CompleteMultipartUpload", "PutObject"},
	{"uploadId", "GET", "ListParts", "ListMultipartUploadParts"},
	{"uploadId", "DELETE", "AbortMultipartUpload", ""},
	{"versionId", "GET", "GetObject", "GetObjectVersion"},
	{"versionId", "HEAD", "HeadObject", "GetObjectVersion"},
	{"versionId", "DELETE", "DeleteObject", "DeleteObjectVersion"},
}

var bucketSubs = []sub{
	{"acl", "GET", "GetBucketAcl", ""},
	{"acl", "PUT", "PutBucketAcl", ""},
	{"policy", "GET", "GetBucketPolicy", ""},
	{"policy", "PUT", "PutBucketPolicy", ""},
	{"policy", "DELETE", "DeleteBucketPolicy", ""},
	{"policyStatus", "GET", "GetBucketPolicyStatus", ""},
	{"versioning", "GET", "GetBucketVersioning", ""},
	{"versioning", "PUT", "PutBucketVersioning", ""},
	{"versions", "GET", "ListObjectVersions", "ListBucketVersions"},
	{"uploads", "GET", "ListMultipartUploads", "ListBucketMultipartUploads"},
	{"tagging", "GET", "GetBucketTagging", ""},
	{"lifecycle", "GET", "GetBucketLifecycleConfiguration", "GetLifecycleConfiguration"},
	{"lifecycle", "PUT", "PutBucketLifecycleConfiguration", "PutLifecycleConfiguration"},
	{"cors", "GET", "GetBucketCors", "GetBucketCORS"},
	{"encryption", "GET", "GetBucketEncryption", "GetEncryptionConfiguration"},
	{"publicAccessBlock", "GET", "GetPublicAccessBlock", "GetBucketPublicAccessBlock"},
	{"ownershipControls", "GET", "GetBucketOwnershipControls", ""},
	{"object-lock", "GET", "GetObjectLockConfiguration", "GetBucketObjectLockConfiguration"},
	{"notification", "GET", "GetBucketNotificationConfiguration", "GetBucketNotification"},
	{"website", "GET", "GetBucketWebsite", ""},
}

func findSub(subs []sub, c *call) *operation {
	for _, sub := range subs {
		if !c.query.Has(sub.query) || sub.method != c.r.Method {
			continue
		}
		action := sub.action
		if action == "" {
			action = sub.api
		}
		return unserved(c.r.Method, "s3:"+sub.api, "s3:"+action)
	}
	return nil
}

// unserved is an operation that needs its permission and then isn't there.
func unserved(method, api, action string) *operation {
	return &operation{
		api: api,
		permit: func(s *Server, c *call) error {
			if c.Bucket == "" {
				return c.authorizeAll(access{action: action, resource: "*", account: c.caller.account})
			}
			if err := s.enterBucket(c); err != nil {
				return err
			}
			if c.Key == "" {
				return c.authorizeAll(c.bucketAccess(c.bucket, action))
			}
			return c.authorizeAll(c.objectAccess(c.bucket, action, c.Key))
		},
		run: func(*Server, *call) (*response, error) { return nil, notImplemented(method + " " + api) },
	}
}

func routeBucket(c *call) (*operation, error) {
	if op := findSub(bucketSubs, c); op != nil {
		return op, nil
	}
	switch c.r.Method {
	case http.MethodHead:
		return &headBucket, nil
	case http.MethodGet:
		switch {
		case c.query.Has("location"):
			return &getBucketLocation, nil
		case c.query.Get("list-type") == "2":
			return &listObjectsV2, nil
		}
		return unserved(c.r.Method, "s3:ListObjects", "s3:ListBucket"), nil
	case http.MethodPost:
		if c.query.Has("delete") {
			return &deleteObjects, nil
		}
	case http.MethodPut:
		return unserved(c.r.Method, "s3:CreateBucket", "s3:CreateBucket"), nil
	case http.MethodDelete:
		return unserved(c.r.Method, "s3:DeleteBucket", "s3:DeleteBucket"), nil
	}
	return nil, methodNotAllowed()
}

func routeObject(c *call) (*operation, error) {
	if op := findSub(objectSubs, c); op != nil {
		return op, nil
	}
	switch c.r.Method {
	case http.MethodPut:
		if c.r.Header.Get("X-Amz-Copy-Source") != "" {
			return &copyObject, nil
		}
		return &putObject, nil
	case http.MethodGet:
		return &getObject, nil
	case http.MethodHead:
		return &headObject, nil
	case http.MethodDelete:
		return &deleteObject, nil
	}
	return nil, methodNotAllowed()
}

func methodNotAllowed() error {
	return fail(http.StatusMethodNotAllowed, "MethodNotAllowed", "The specified method is not allowed against this resource.")
}

// enterBucket finds the call's bucket, in the order in which S3 looks: does
// it exist, does it lie in the region that was asked, is it the expected
// owner's.
func (s *Server) enterBucket(c *call) error {
	s.store.mu.Lock()
	b := s.store.buckets[c.Bucket]
	s.store.mu.Unlock()
	if b == nil {
		return fail(http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist").with("BucketName", c.Bucket)
	}
	c.bucket = b
	if c.signature != nil && c.region != b.region {
		return fail(http.StatusMovedPermanently, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint.").
			with("Endpoint", b.name+".s3."+b.region+".amazonaws.com", "Bucket", b.name).
			withHeader("x-amz-bucket-region", b.region)
	}
	if owner := c.r.Header.Get("X-Amz-Expected-Bucket-Owner"); owner != "" && owner != b.owner {
		return refuse(http.StatusForbidden, "AccessDenied", "Access Denied").
			because("the bucket %s belongs to account %s, not to the expected %s", b.name, b.owner, owner)
	}
	return nil
}

// enterObject is enterBucket for an object's operation.
func (s *Server) enterObject(c *call) error {
	if err := s.enterBucket(c); err != nil {
		return err
	}
	if len(c.Key) > 1024 {
		return fail(http.StatusBadRequest, "KeyTooLongError", "Your key is too long").with("Size", strconv.Itoa(len(c.Key)), "MaxSizeAllowed", "1024")
	}
	return nil
}
