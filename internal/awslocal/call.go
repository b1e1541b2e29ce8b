package awslocal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Call is what fault rules, the log and the counters know of a request.
type Call struct {
	// API is the service and operation: "s3:PutObject", "s3:CopyObject",
	// "sts:AssumeRole", "cloudfront:CreateInvalidation".
	API string
	// Bucket and Key are S3's; Key is a COPY's destination.
	Bucket, Key string
	// Distribution is CloudFront's.
	Distribution string
	// Role is the ARN of the role that AssumeRole asks for, and of the role
	// whose session made any other call.
	Role string
	// Session is the role session's name, else empty.
	Session string
	// Principal is the caller's ARN, "anonymous" for an unsigned call, empty
	// for one that failed authentication.
	Principal string
}

// service is the one that a call was signed for.
type service string

const (
	serviceS3         service = "s3"
	serviceSTS        service = "sts"
	serviceCloudFront service = "cloudfront"
)

// call is one request on its way through the server.
type call struct {
	Call
	ctx       context.Context
	r         *http.Request
	service   service
	region    string // that of the signature's scope
	query     url.Values
	requestID string
	received  time.Time

	signature *signature // nil when unsigned
	caller    principal
	bucket    *bucket
	form      url.Values // STS's arguments
	body      *blob      // received and verified; nil before
}

// operation is one API. Its two steps are apart so that every call is
// refused, received and failed by rules in the same order.
type operation struct {
	api string
	// permit checks the arguments that need no body, and the caller's rights.
	permit func(*Server, *call) error
	// run has the effect. It owns no part of c.body beyond its return unless
	// it retained it.
	run func(*Server, *call) (*response, error)
}

// response is an answer before it is written, so that it can also be lost.
type response struct {
	status int
	header http.Header
	body   []byte
	// stream replaces body when set: length bytes of an object.
	stream io.ReadCloser
	length int64

	code  string // the error's, for the log
	reset bool   // close the connection in place of answering
	// cut ends the connection after so many bytes of the body, when positive.
	cut int64
}

// errGone ends a call whose client is not there any more.
var errGone = errors.New("the client has gone")

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closing.Err() != nil {
		reset(w)
		return
	}

	c := &call{ctx: r.Context(), r: r, requestID: newID(16), received: s.now()}
	res, err := s.serve(c)
	if c.body != nil {
		defer c.body.release()
	}
	if err != nil {
		res = s.failed(c, err)
	}
	s.journal.record(c, res)
	s.write(w, c, res)
}

func (s *Server) failed(c *call, err error) *response {
	var known *apiError
	switch {
	case errors.As(err, &known):
		if known.refused {
			s.journal.refuse(c, c.Key, known)
		}
		return known.response(c)
	case errors.Is(err, errGone):
		return &response{reset: true, code: "ClientGone"}
	default:
		return fail(http.StatusInternalServerError, "InternalError", "%v", err).response(c)
	}
}

func (s *Server) serve(c *call) (*response, error) {
	if err := c.identify(); err != nil {
		return nil, err
	}
	// A service other than S3 signs the body itself, and has its arguments there.
	if c.service != serviceS3 {
		if err := s.receiveDocument(c); err != nil {
			return nil, err
		}
	}
	op, err := s.route(c)
	if err != nil {
		return nil, err
	}
	c.API = op.api
	if err := s.authenticate(c); err != nil {
		return nil, err
	}
	if err := op.permit(s, c); err != nil {
		return nil, err
	}
	if c.service == serviceS3 {
		if err := s.receive(c); err != nil {
			return nil, err
		}
	}
	return s.faulted(c, func() (*response, error) { return op.run(s, c) })
}

// identify reads which service the call means. The signature decides; an
// unsigned call can only be one to a public bucket.
func (c *call) identify() error {
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return fail(http.StatusBadRequest, "InvalidURI", "Couldn't parse the specified URI.")
	}
	c.query = query
	c.service = serviceS3
	if c.r.Header.Get("Authorization") == "" {
		return nil
	}
	c.signature, err = parseSignature(c.r)
	if err != nil {
		return err
	}
	c.service, c.region = service(c.signature.service), c.signature.region
	return nil
}

func (s *Server) route(c *call) (*operation, error) {
	switch c.service {
	case serviceS3:
		return s.routeS3(c)
	case serviceSTS:
		return routeSTS(c)
	case serviceCloudFront:
		return routeCloudFront(c)
	}
	return nil, fail(http.StatusBadRequest, "AuthorizationHeaderMalformed", "The authorization header is malformed; the service %q is not served here.", c.signature.service)
}

const hostID = "b3duYnVja2V0IHN0YW5kLWluIGZvciBBbWF6b24gUzM="

func (s *Server) write(w http.ResponseWriter, c *call, res *response) {
	if res.stream != nil {
		defer res.stream.Close()
	}
	if res.reset {
		reset(w)
		return
	}
	header := w.Header()
	for name, values := range res.header {
		header[name] = values
	}
	if c.service == serviceS3 {
		header.Set("x-amz-request-id", c.requestID)
		header.Set("x-amz-id-2", hostID)
	} else {
		header.Set("x-amzn-RequestId", c.requestID)
	}
	length := int64(len(res.body))
	body := io.Reader(bytes.NewReader(res.body))
	if res.stream != nil {
		length, body = res.length, res.stream
	}
	bare := res.status == http.StatusNoContent || res.status == http.StatusNotModified
	if c.r.Method == http.MethodHead && res.stream == nil && header.Get("Content-Length") == "" {
		// HEAD errors have neither body nor length.
		header.Del("Content-Type")
	} else if !bare && header.Get("Content-Length") == "" {
		header.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	w.WriteHeader(res.status)
	if bare || c.r.Method == http.MethodHead {
		return
	}
	if res.cut > 0 && res.cut < length {
		_, _ = io.CopyN(w, body, res.cut)
		_ = http.NewResponseController(w).Flush()
		reset(w)
		return
	}
	_, _ = io.Copy(w, body)
}

// reset closes the connection as a crashed peer would: without an answer, and
// with a TCP reset where the connection allows it.
func reset(w http.ResponseWriter) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := hijacker.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

func newID(length int) string {
	raw := make([]byte, length)
	_, _ = rand.Read(raw)
	return base32.StdEncoding.EncodeToString(raw)[:length]
}

func xmlResponse(status int, doc any) *response {
	return &response{status: status, header: http.Header{"Content-Type": {"application/xml"}}, body: document(doc)}
}
