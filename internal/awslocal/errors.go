package awslocal

import (
	"encoding/xml"
	"fmt"
	"net/http"
)

// apiError is an error as AWS answers it.
type apiError struct {
	status  int
	code    string
	message string
	// fields are further elements of the error document, as pairs.
	fields []string
	header http.Header
	// refused marks what was turned down for lack of a right, and is listed
	// by Refused; reason says more than AWS would tell the caller.
	refused bool
	reason  string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// refuse is an error that tells of a missing right.
func refuse(status int, code, format string, args ...any) *apiError {
	err := fail(status, code, format, args...)
	err.refused = true
	err.reason = err.message
	return err
}

func (e *apiError) with(fields ...string) *apiError {
	e.fields = append(e.fields, fields...)
	return e
}

func (e *apiError) because(format string, args ...any) *apiError {
	e.reason = fmt.Sprintf(format, args...)
	return e
}

func (e *apiError) withHeader(name, value string) *apiError {
	if e.header == nil {
		e.header = http.Header{}
	}
	e.header.Set(name, value)
	return e
}

func invalidArgument(format string, args ...any) *apiError {
	return fail(http.StatusBadRequest, "InvalidArgument", format, args...)
}

func notImplemented(what string) *apiError {
	return fail(http.StatusNotImplemented, "NotImplemented", "A header or query you provided implies functionality that is not implemented: %s", what)
}

func noSuchKey(key string) *apiError {
	return fail(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.").with("Key", key)
}

func preconditionFailed(condition string) *apiError {
	return fail(http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold").with("Condition", condition)
}

// response turns the error into the document of the service that was called.
func (e *apiError) response(c *call) *response {
	res := &response{status: e.status, header: http.Header{}, code: e.code}
	for name, values := range e.header {
		res.header[name] = values
	}
	if e.status == http.StatusNotModified {
		return res
	}
	res.header.Set("Content-Type", "application/xml")
	if c.service == serviceS3 {
		res.body = e.s3Document(c)
	} else {
		res.body = e.queryDocument(c)
	}
	return res
}

type xmlField struct {
	XMLName xml.Name
	Value   string `xml:",chardata"`
}

func (e *apiError) s3Document(c *call) []byte {
	doc := struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		Fields    []xmlField
		Resource  string `xml:",omitempty"`
		RequestID string `xml:"RequestId"`
		HostID    string `xml:"HostId"`
	}{Code: e.code, Message: e.message, Resource: c.r.URL.Path, RequestID: c.requestID, HostID: hostID}
	for i := 0; i+1 < len(e.fields); i += 2 {
		doc.Fields = append(doc.Fields, xmlField{xml.Name{Local: e.fields[i]}, e.fields[i+1]})
	}
	return document(doc)
}

func (e *apiError) queryDocument(c *call) []byte {
	namespace := "https://sts.amazonaws.com/doc/2011-06-15/"
	if c.service == serviceCloudFront {
		namespace = cloudFrontNamespace
	}
	kind := "Sender"
	if e.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	return document(struct {
		XMLName   xml.Name `xml:"ErrorResponse"`
		Namespace string   `xml:"xmlns,attr"`
		Type      string   `xml:"Error>Type"`
		Code      string   `xml:"Error>Code"`
		Message   string   `xml:"Error>Message"`
		RequestID string   `xml:"RequestId"`
	}{Namespace: namespace, Type: kind, Code: e.code, Message: e.message, RequestID: c.requestID})
}

// document renders one of our own structs, which can't fail.
func document(doc any) []byte {
	body, err := xml.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("awslocal: render %T: %v", doc, err))
	}
	return append([]byte(xml.Header), body...)
}
