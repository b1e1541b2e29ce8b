package awslocal

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

var (
	headBucket        = operation{"s3:HeadBucket", permitHeadBucket, runHeadBucket}
	getBucketLocation = operation{"s3:GetBucketLocation", permitBucket("s3:GetBucketLocation"), runGetBucketLocation}
	listObjectsV2     = operation{"s3:ListObjectsV2", permitBucket("s3:ListBucket"), runListObjectsV2}
)

func permitBucket(action string) func(*Server, *call) error {
	return func(s *Server, c *call) error {
		if err := s.enterBucket(c); err != nil {
			return err
		}
		return c.authorizeAll(c.bucketAccess(c.bucket, action))
	}
}

// permitHeadBucket tells the bucket's region even to whom it denies the rest.
func permitHeadBucket(s *Server, c *call) error {
	err := permitBucket("s3:ListBucket")(s, c)
	if known, ok := err.(*apiError); ok && c.bucket != nil {
		return known.withHeader("x-amz-bucket-region", c.bucket.region)
	}
	return err
}

func runHeadBucket(s *Server, c *call) (*response, error) {
	return &response{status: http.StatusOK, header: http.Header{
		"X-Amz-Bucket-Region": {c.bucket.region}, "X-Amz-Access-Point-Alias": {"false"},
	}}, nil
}

func runGetBucketLocation(s *Server, c *call) (*response, error) {
	location := c.bucket.region
	if location == "us-east-1" {
		location = ""
	}
	return xmlResponse(http.StatusOK, struct {
		XMLName   xml.Name `xml:"LocationConstraint"`
		Namespace string   `xml:"xmlns,attr"`
		Location  string   `xml:",chardata"`
	}{Namespace: s3Namespace, Location: location}), nil
}

type listedObject struct {
	Key               string
	LastModified      string
	ETag              string
	ChecksumAlgorithm string
	Size              int64
	StorageClass      string
}

type listedPrefix struct{ Prefix string }

type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Namespace             string   `xml:"xmlns,attr"`
	Name                  string
	Prefix                string
	Delimiter             string `xml:",omitempty"`
	StartAfter            string `xml:",omitempty"`
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	Contents              []listedObject
	CommonPrefixes        []listedPrefix
}

func runListObjectsV2(s *Server, c *call) (*response, error) {
	maxKeys := 1000
	if c.query.Has("max-keys") {
		asked, err := strconv.Atoi(c.query.Get("max-keys"))
		if err != nil || asked < 0 {
			return nil, invalidArgument("Provided max-keys not an integer or within integer range")
		}
		maxKeys = min(asked, maxKeys)
	}
	page := listing{
		Namespace: s3Namespace, Name: c.bucket.name, MaxKeys: maxKeys,
		Prefix: c.query.Get("prefix"), Delimiter: c.query.Get("delimiter"),
		StartAfter: c.query.Get("start-after"), ContinuationToken: c.query.Get("continuation-token"),
		EncodingType: c.query.Get("encoding-type"),
	}
	if page.EncodingType != "" && page.EncodingType != "url" {
		return nil, invalidArgument("Invalid Encoding Method specified in Request")
	}
	after := page.StartAfter
	if page.ContinuationToken != "" {
		raw, err := base64.RawURLEncoding.DecodeString(page.ContinuationToken)
		if err != nil {
			return nil, invalidArgument("The continuation token provided is incorrect")
		}
		after = string(raw)
	}
	s.store.mu.Lock()
	last := page.fill(c.bucket, after)
	s.store.mu.Unlock()
	if page.IsTruncated {
		page.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(last))
	}
	page.encode()
	return xmlResponse(http.StatusOK, page), nil
}

// fill takes the entries that come after a key or common prefix, and returns
// the last one taken. The caller holds the store's lock.
func (l *listing) fill(b *bucket, after string) (last string) {
	keys := b.keys()
	start, found := slices.BinarySearch(keys, max(after, l.Prefix))
	if found && keys[start] == after {
		start++
	}
	for _, key := range keys[start:] {
		if !strings.HasPrefix(key, l.Prefix) {
			return last
		}
		o := b.objects[key]
		group := l.group(key)
		if o == nil || group != "" && strings.HasPrefix(after, group) || group != "" && group == last {
			continue
		}
		if l.KeyCount == l.MaxKeys {
			l.IsTruncated = l.MaxKeys > 0
			return last
		}
		l.KeyCount++
		if group != "" {
			l.CommonPrefixes = append(l.CommonPrefixes, listedPrefix{group})
			last = group
			continue
		}
		l.Contents = append(l.Contents, listedObject{
			Key: key, LastModified: o.modified.Format("2006-01-02T15:04:05.000Z"), ETag: o.etag,
			ChecksumAlgorithm: o.checksum, Size: o.body.size, StorageClass: "STANDARD",
		})
		last = key
	}
	return last
}

// group is the common prefix that a key falls under, empty when it stands for
// itself.
func (l *listing) group(key string) string {
	if l.Delimiter == "" {
		return ""
	}
	head, _, found := strings.Cut(key[len(l.Prefix):], l.Delimiter)
	if !found {
		return ""
	}
	return l.Prefix + head + l.Delimiter
}

// encode makes keys safe for XML where the client asked for it. Without, a
// key that XML can't hold comes out spoilt, as from S3.
func (l *listing) encode() {
	if l.EncodingType == "" {
		return
	}
	encode := func(text *string) { *text = strings.ReplaceAll(escape(*text, true), "%20", "+") }
	encode(&l.Prefix)
	encode(&l.Delimiter)
	encode(&l.StartAfter)
	for i := range l.Contents {
		encode(&l.Contents[i].Key)
	}
	for i := range l.CommonPrefixes {
		encode(&l.CommonPrefixes[i].Prefix)
	}
}

var deleteObjects = operation{"s3:DeleteObjects", permitDeleteObjects, runDeleteObjects}

// permitDeleteObjects leaves rights to each key: without any, the answer is
// still 200.
func permitDeleteObjects(s *Server, c *call) error {
	if err := s.enterBucket(c); err != nil {
		return err
	}
	if c.caller.arn == anonymous.arn {
		return refuse(http.StatusForbidden, "AccessDenied", "Access Denied")
	}
	for name := range c.r.Header {
		if name == "Content-Md5" || name == "X-Amz-Trailer" || strings.HasPrefix(name, checksumHeaderPrefix) {
			return nil
		}
	}
	return invalidRequest("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
}

type toDelete struct {
	Key       string
	ETag      string
	VersionID string `xml:"VersionId"`
}

type deleted struct{ Key string }

type notDeleted struct {
	Key     string
	Code    string
	Message string
}

func runDeleteObjects(s *Server, c *call) (*response, error) {
	var asked struct {
		XMLName xml.Name   `xml:"Delete"`
		Object  []toDelete `xml:"Object"`
		Quiet   bool
	}
	if err := xml.Unmarshal(c.body.bytes(), &asked); err != nil || len(asked.Object) == 0 || len(asked.Object) > 1000 {
		return nil, fail(http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
	}
	result := struct {
		XMLName   xml.Name `xml:"DeleteResult"`
		Namespace string   `xml:"xmlns,attr"`
		Deleted   []deleted
		Error     []notDeleted
	}{Namespace: s3Namespace}
	for _, one := range asked.Object {
		err := s.deleteOne(c, one)
		switch known, _ := err.(*apiError); {
		case known != nil:
			if known.refused {
				s.journal.refuse(c, one.Key, known)
			}
			result.Error = append(result.Error, notDeleted{one.Key, known.code, known.message})
		case !asked.Quiet:
			result.Deleted = append(result.Deleted, deleted{one.Key})
		}
	}
	return xmlResponse(http.StatusOK, result), nil
}

func (s *Server) deleteOne(c *call, one toDelete) error {
	if one.VersionID != "" {
		if err := c.authorizeAll(c.objectAccess(c.bucket, "s3:DeleteObjectVersion", one.Key)); err != nil {
			return err
		}
		return notImplemented("VersionId")
	}
	if one.Key == "" {
		return fail(http.StatusBadRequest, "UserKeyMustBeSpecified", "The request must contain a valid key.")
	}
	if len(one.Key) > 1024 {
		return fail(http.StatusBadRequest, "KeyTooLongError", "Your key is too long")
	}
	if err := c.permitDeleteOf(one.Key, one.ETag); err != nil {
		return err
	}
	return s.remove(c.bucket, one.Key, one.ETag)
}
