package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// What an answer can mean to those who decide what comes next.
var (
	// ErrConditionFailed: there is another object at the key than the
	// condition names, or one where there should be none (412). When a write's
	// If-Match met no object at all (404), it is ErrNotFound too.
	ErrConditionFailed = errors.New("the object there isn't the one expected")
	// ErrNotFound: there is no object at the key (404).
	ErrNotFound = errors.New("there is no such object")
	// ErrSourceNotFound: a copy's source is missing.
	ErrSourceNotFound = errors.New("there is no such source object")
	// ErrSourceChanged: a copy's source isn't the version that was meant.
	ErrSourceChanged = errors.New("the source object has changed")
	// ErrInDoubt: a write was cancelled while it was under way, and may yet take
	// effect. Who tries again before it can't makes it a surprise to whoever
	// comes next.
	ErrInDoubt = errors.New("it may yet take effect")
)

// LateWrites is for how long a write that was cancelled is taken to be able to
// take effect. AWS names no bound; who was killed is followed after a lease.
const LateWrites = 5 * time.Second

// Codes of failures beside those of package failure.
const (
	// The integration's: they say what the customer has to mend.
	AssumeRoleDenied      = "assume_role_denied"
	AssumeRoleRefused     = "assume_role_refused"
	SessionPolicyTooLarge = "session_policy_too_large"
	CredentialsRefused    = "credentials_refused"
	NoSuchBucket          = "no_such_bucket"
	WrongRegion           = "wrong_region"
	KMSDenied             = "kms_denied"
	AccountSuspended      = "account_suspended"
	InvalidSettings       = "invalid_settings"
	NotAsWritten          = "not_as_written"
	// Transient.
	StaleCredentials = "stale_credentials"
	OwnIdentity      = "own_identity"
	ConditionFailed  = "condition_failed"
	Conflict         = "conflict"
	// Permanent: S3 can't do what was asked, and never will.
	Refused = "refused"
)

const (
	opAssumeRole    = "AssumeRole"
	opIdentity      = "GetCallerIdentity"
	opPutObject     = "PutObject"
	opCopyObject    = "CopyObject"
	opDeleteObject  = "DeleteObject"
	opDeleteObjects = "DeleteObjects"
	opHeadObject    = "HeadObject"
)

// Call names what was tried, for whom.
type Call struct {
	Operation string // as AWS spells it
	ServiceID string
	Bucket    string
	Key       string
	SourceKey string
	Role      string
}

// writes tells whether the call changes the bucket.
func (c Call) writes() bool {
	switch c.Operation {
	case opPutObject, opCopyObject, opDeleteObject, opDeleteObjects:
		return true
	}
	return false
}

func (c Call) String() string {
	text := c.Operation
	if c.Role != "" {
		text += fmt.Sprintf(" of %q", c.Role)
	}
	if c.SourceKey != "" {
		text += fmt.Sprintf(" from %q to", c.SourceKey)
	}
	if c.Key != "" {
		text += fmt.Sprintf(" %q", c.Key)
	}
	if c.Bucket != "" {
		text += fmt.Sprintf(" in bucket %q", c.Bucket)
	}
	if c.ServiceID != "" {
		text += fmt.Sprintf(" for service %q", c.ServiceID)
	}
	return text
}

// Classify turns any error of a call, which must not be nil, into a failure.
// The error's own text isn't kept whole: it may hold URLs.
func Classify(call Call, err error) *failure.Error {
	if isClassified(err) {
		f := failure.Of(err)
		var inner *failure.Error
		errors.As(err, &inner)
		return failure.New(f.Class, f.Code, "%s: %w", call, inner).WithRequestID(f.RequestID)
	}
	// An answer that came counts, even when the time was up right after it.
	if a := answerOf(err); a.status != 0 || a.code != "" {
		return classifyAnswer(call, a)
	}
	return classifySilence(call, err)
}

func isClassified(err error) bool {
	var f *failure.Error
	return errors.As(err, &f)
}

// answer is what AWS said.
type answer struct {
	status        int // 0 inside a DeleteObjects answer
	code, message string
	requestID     string
}

func answerOf(err error) answer {
	a := answer{status: statusOf(err)}
	var api smithy.APIError
	if errors.As(err, &api) {
		a.code, a.message = api.ErrorCode(), api.ErrorMessage()
	}
	var id interface{ ServiceRequestID() string }
	if errors.As(err, &id) {
		a.requestID = id.ServiceRequestID()
	}
	return a
}

// statusOf is the HTTP status of an answer, 0 where there was none.
func statusOf(err error) int {
	var response interface{ HTTPStatusCode() int }
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

func (a answer) String() string {
	switch {
	case a.status == 0:
		return fmt.Sprintf("%s: %s", a.code, a.message)
	case a.code == "":
		return fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
	case a.message == "":
		return fmt.Sprintf("%d %s", a.status, a.code)
	}
	return fmt.Sprintf("%d %s: %s", a.status, a.code, a.message)
}

func classifyAnswer(call Call, a answer) *failure.Error {
	var v verdict
	switch call.Operation {
	case opAssumeRole:
		v = stsVerdict(a)
	case opIdentity:
		v = identityVerdict(a)
	default:
		v = s3Verdict(call, a)
	}
	var f *failure.Error
	switch {
	case v.meaning != nil:
		f = failure.New(v.class, v.code, "%s: %w (%s)", call, v.meaning, a)
	case v.remedy != "":
		f = failure.New(v.class, v.code, "%s: %s; %s", call, a, v.remedy)
	default:
		f = failure.New(v.class, v.code, "%s: %s", call, a)
	}
	return f.WithRequestID(a.requestID)
}

// classifySilence sorts errors without an answer: nobody there, too slow,
// cancelled, or an answer that can't be read.
func classifySilence(call Call, err error) *failure.Error {
	text := wireText(err)
	var netErr net.Error
	var unreadable *smithy.DeserializationError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failure.New(failure.Transient, failure.Timeout, "%s: %s", call, text)
	case errors.Is(err, context.Canceled) && call.writes():
		return failure.New(failure.Interrupted, failure.Canceled, "%s: %w: %w", call, context.Canceled, ErrInDoubt)
	case errors.Is(err, context.Canceled):
		return failure.New(failure.Interrupted, failure.Canceled, "%s: %w", call, context.Canceled)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return failure.New(failure.Transient, failure.Timeout, "%s: %s", call, text)
	case errors.As(err, &netErr), errors.As(err, &unreadable),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failure.New(failure.Transient, failure.ServerError, "%s: %s", call, text)
	case call.Operation == opAssumeRole, call.Operation == opIdentity:
		// No credentials of our own to ask with.
		return failure.New(failure.Transient, OwnIdentity, "%s: %s", call, text)
	}
	return failure.New(failure.Transient, failure.Internal, "%s: %s", call, text)
}

// wireText is an error's text without the request's URL.
func wireText(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	var op *smithy.OperationError
	for errors.As(err, &op) {
		err = op.Err
	}
	return strings.TrimSpace(err.Error())
}

func conditionFailed(call Call) *failure.Error {
	return failure.New(failure.Transient, ConditionFailed, "%s: %w", call, ErrConditionFailed)
}

func notFound(call Call) *failure.Error {
	return failure.New(failure.Permanent, failure.ObjectMissing, "%s: %w", call, ErrNotFound)
}

func sourceNotFound(call Call) *failure.Error {
	return failure.New(failure.Permanent, failure.ObjectMissing, "%s: %w", call, ErrSourceNotFound)
}
