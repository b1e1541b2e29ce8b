package bucket

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// verdict is what an answer of AWS means to us.
type verdict struct {
	class failure.Class
	code  string
	// remedy tells the customer, or the operator, what to change.
	remedy string
	// meaning is the sentinel that callers look for.
	meaning error
}

// errMissingTarget is a write's If-Match without an object to match.
var errMissingTarget = fmt.Errorf("%w: %w", ErrConditionFailed, ErrNotFound)

var (
	transientError = verdict{class: failure.Transient, code: failure.ServerError}
	throttled      = verdict{class: failure.Transient, code: failure.Throttled}
	conflict       = verdict{class: failure.Transient, code: Conflict}
	stale          = verdict{class: failure.Transient, code: StaleCredentials}
	ourIdentity    = verdict{
		class: failure.Transient, code: OwnIdentity,
		remedy: "these are the worker's own credentials, not the customer's: check them and the machine's clock",
	}
	damaged = verdict{class: failure.Permanent, code: failure.ChecksumMismatch}
	invalid = verdict{class: failure.Permanent, code: failure.InvalidEvent}
	denied  = verdict{
		class: failure.Integration, code: failure.Denied,
		remedy: "check the role's policy, the bucket policy, the bucket's owner and the prefix",
	}
	kmsDenied = verdict{
		class: failure.Integration, code: KMSDenied,
		remedy: "let the role use the bucket's KMS key: kms:GenerateDataKey and kms:Decrypt, in the role's policy and in the key's",
	}
	wrongRegion = verdict{
		class: failure.Integration, code: WrongRegion,
		remedy: "set the region that the bucket is in",
	}
	noSuchBucket = verdict{
		class: failure.Integration, code: NoSuchBucket,
		remedy: "create the bucket, or set the name of one that exists",
	}
	suspended = verdict{
		class: failure.Integration, code: AccountSuspended,
		remedy: "the AWS account needs its owner's attention",
	}
	credentialsRefused = verdict{
		class: failure.Integration, code: CredentialsRefused,
		remedy: "S3 doesn't accept the role's session; a new one is opened for the next attempt",
	}
)

// s3Codes are the answers that mean the same for every S3 call.
var s3Codes = map[string]verdict{
	"SlowDown": throttled, "SlowDownRead": throttled, "SlowDownWrite": throttled,
	"Throttling": throttled, "ThrottlingException": throttled, "ThrottledException": throttled,
	"RequestThrottled": throttled, "RequestThrottledException": throttled,
	"TooManyRequests": throttled, "TooManyRequestsException": throttled,
	"RequestLimitExceeded": throttled, "BandwidthLimitExceeded": throttled,

	"RequestTimeout":          {class: failure.Transient, code: failure.Timeout},
	"RequestTimeoutException": {class: failure.Transient, code: failure.Timeout},
	"InternalError":           transientError,
	"ServiceUnavailable":      transientError,
	"IncompleteBody":          transientError,
	"TemporaryRedirect":       transientError,
	"RequestTimeTooSkewed":    ourIdentity,
	"SignatureDoesNotMatch":   ourIdentity,

	"ConditionalRequestConflict": conflict,
	"OperationAborted":           conflict,

	"ExpiredToken": stale, "ExpiredTokenException": stale, "TokenRefreshRequired": stale,

	"AccessDenied": denied, "AccessDeniedException": denied, "Forbidden": denied, "UnauthorizedAccess": denied,

	"InvalidAccessKeyId": credentialsRefused, "InvalidToken": credentialsRefused, "InvalidSecurity": credentialsRefused,

	"NoSuchBucket": noSuchBucket, "InvalidBucketName": noSuchBucket, "InvalidBucketState": noSuchBucket,

	"PermanentRedirect": wrongRegion, "MovedPermanently": wrongRegion,
	"AuthorizationHeaderMalformed": wrongRegion, "IllegalLocationConstraintException": wrongRegion,

	"AllAccessDisabled": suspended, "AccountProblem": suspended, "NotSignedUp": suspended,
	"InvalidPayer": suspended, "AccountSuspended": suspended,

	"BadDigest": damaged, "InvalidDigest": damaged,
	"XAmzContentSHA256Mismatch": damaged, "XAmzContentChecksumMismatch": damaged,

	"EntityTooLarge":   {class: failure.Permanent, code: failure.TooLarge},
	"KeyTooLongError":  invalid,
	"KeyTooLong":       invalid,
	"MetadataTooLarge": invalid,

	"InvalidObjectState": {
		class: failure.Permanent, code: Refused,
		remedy: "the object is archived; restore it in S3 first",
	},
}

func s3Verdict(call Call, a answer) verdict {
	if kms, ok := strings.CutPrefix(a.code, "KMS."); ok {
		// KMS has passing troubles of its own, which aren't the customer's.
		switch v := s3Codes[kms]; {
		case v.class == failure.Transient:
			return v
		case a.status >= http.StatusInternalServerError:
			return transientError
		}
		return kmsDenied
	}
	if a.status == http.StatusForbidden && strings.Contains(a.message, "kms:") {
		return kmsDenied
	}
	// An answer to HEAD has no body; a 503 there hides a SlowDown, and the
	// SDK's code is the status in words.
	if call.Operation == opHeadObject && a.status == http.StatusServiceUnavailable {
		return throttled
	}
	if strings.Contains(a.message, "larger than the maximum allowable size for a copy source") {
		return verdict{class: failure.Permanent, code: failure.TooLarge}
	}
	if v, ok := s3Codes[a.code]; ok {
		return v
	}
	switch {
	case a.status == http.StatusPreconditionFailed || a.code == "PreconditionFailed":
		return verdict{class: failure.Transient, code: ConditionFailed, meaning: ErrConditionFailed}
	case a.status == http.StatusNotFound || a.code == "NoSuchKey":
		return notFoundVerdict(call)
	case a.status == http.StatusMovedPermanently:
		return wrongRegion
	case a.status == http.StatusForbidden, a.status == http.StatusUnauthorized:
		return denied
	}
	return byStatus(a)
}

// notFoundVerdict: a PUT finds nothing only where If-Match wants something.
// What a COPY doesn't find, its caller looks up.
func notFoundVerdict(call Call) verdict {
	if call.Operation == opPutObject || call.Operation == opCopyObject {
		return verdict{class: failure.Transient, code: ConditionFailed, meaning: errMissingTarget}
	}
	return verdict{class: failure.Permanent, code: failure.ObjectMissing, meaning: ErrNotFound}
}

func byStatus(a answer) verdict {
	switch {
	case a.status == http.StatusTooManyRequests:
		return throttled
	case a.status == http.StatusConflict:
		return conflict
	case a.status == http.StatusRequestTimeout:
		return verdict{class: failure.Transient, code: failure.Timeout}
	case a.status == http.StatusNotImplemented:
		return verdict{class: failure.Permanent, code: Refused}
	case a.status >= 400 && a.status < 500:
		return verdict{class: failure.Permanent, code: Refused}
	}
	// 5xx, a redirect, a 200 with an error inside, or a code that is new.
	return transientError
}

// identityVerdict: whatever STS says to GetCallerIdentity is about ourselves.
func identityVerdict(a answer) verdict {
	if v := stsVerdict(a); v.class == failure.Transient {
		return v
	}
	return ourIdentity
}

// stsVerdict sorts answers to AssumeRole. Most are the customer's to mend; what
// S3 would call a stale session is about our own credentials here.
func stsVerdict(a answer) verdict {
	switch a.code {
	case "AccessDenied", "AccessDeniedException":
		return verdict{
			class: failure.Integration, code: AssumeRoleDenied,
			remedy: "check the role's ARN, and that its trust policy names our account and the external ID",
		}
	case "PackedPolicyTooLarge", "PackedPolicyTooLargeException":
		return verdict{
			class: failure.Integration, code: SessionPolicyTooLarge,
			remedy: "shorten the prefix",
		}
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException",
		"SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationToken",
		"MissingAuthenticationTokenException", "InvalidToken", "InvalidAccessKeyId", "RequestExpired",
		"RequestTimeTooSkewed", "AuthFailure", "OptInRequired":
		return ourIdentity
	}
	if v, ok := s3Codes[a.code]; ok && v.class == failure.Transient {
		return v
	}
	if a.status >= 400 && a.status < 500 && a.status != http.StatusTooManyRequests && a.status != http.StatusRequestTimeout {
		return verdict{
			class: failure.Integration, code: AssumeRoleRefused,
			remedy: "check the role's ARN, the external ID, and that STS is active in the region",
		}
	}
	return byStatus(a)
}
