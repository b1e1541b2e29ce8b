package awslocal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm     = "AWS4-HMAC-SHA256"
	amzTimeLayout = "20060102T150405Z"
	// maxSkew is how far a signature's time may be from ours.
	maxSkew = 15 * time.Minute
)

// signature is a parsed Authorization header (SigV4).
type signature struct {
	accessKeyID, date, region, service string
	signedHeaders                      []string
	value                              string
	signedAt                           time.Time
}

func (sig *signature) scope() string {
	return sig.date + "/" + sig.region + "/" + sig.service + "/aws4_request"
}

func malformedAuthorization(why string) *apiError {
	return refuse(http.StatusBadRequest, "AuthorizationHeaderMalformed", "The authorization header is malformed; %s.", why)
}

func parseSignature(r *http.Request) (*signature, error) {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return nil, refuse(http.StatusBadRequest, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use %s.", algorithm)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return nil, malformedAuthorization("the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"")
	}
	signedAt, err := time.Parse(amzTimeLayout, r.Header.Get("X-Amz-Date"))
	if err != nil {
		return nil, refuse(http.StatusForbidden, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
	}
	if !strings.HasPrefix(r.Header.Get("X-Amz-Date"), scope[1]+"T") {
		return nil, malformedAuthorization("Invalid credential date. Date is not the same as X-Amz-Date")
	}
	sig := &signature{
		accessKeyID: scope[0], date: scope[1], region: scope[2], service: scope[3],
		signedHeaders: strings.Split(parts["SignedHeaders"], ";"),
		value:         parts["Signature"],
		signedAt:      signedAt,
	}
	if !slices.Contains(sig.signedHeaders, "host") {
		return nil, malformedAuthorization("the host header must be signed")
	}
	return sig, nil
}

// authenticate finds the caller and verifies the call's signature.
func (s *Server) authenticate(c *call) error {
	sig := c.signature
	if sig == nil {
		c.caller = anonymous
		c.Principal = anonymous.arn
		return nil
	}
	if skew := time.Since(sig.signedAt); skew > maxSkew || skew < -maxSkew {
		if c.service == serviceS3 {
			return refuse(http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.").
				with("RequestTime", sig.signedAt.Format(amzTimeLayout), "ServerTime", time.Now().UTC().Format(time.RFC3339), "MaxAllowedSkewMilliseconds", "900000")
		}
		return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "Signature expired: %s is not within 15 min. of the server's time.", sig.signedAt.Format(amzTimeLayout))
	}
	identity, err := s.iam.identify(c, s.now())
	if err != nil {
		return err
	}
	payloadHash := c.r.Header.Get("X-Amz-Content-Sha256")
	if c.service == serviceS3 {
		if payloadHash == "" {
			return invalidRequest("Missing required header for this request: x-amz-content-sha256")
		}
	} else {
		sum := sha256.Sum256(c.body.bytes())
		payloadHash = hex.EncodeToString(sum[:])
	}
	if err := unsignedHeaders(c.r, sig.signedHeaders); err != nil {
		return err
	}
	want := hex.EncodeToString(hmacSHA256(signingKey(identity.secret, sig), stringToSign(sig, canonicalRequest(c, payloadHash))))
	if !hmac.Equal([]byte(want), []byte(sig.value)) {
		return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	}
	if identity.expired(s.now()) {
		return expiredToken(c.service)
	}
	c.caller = identity.principal
	c.Principal = c.caller.arn
	c.Session = c.caller.session
	c.Role = c.caller.roleARN
	return nil
}

// unsignedHeaders refuses what S3 refuses: x-amz headers that could have been
// added on the way.
func unsignedHeaders(r *http.Request, signed []string) error {
	for name := range r.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return refuse(http.StatusForbidden, "AccessDenied", "There were headers present in the request which were not signed").
				with("HeadersNotSigned", name)
		}
	}
	return nil
}

func canonicalRequest(c *call, payloadHash string) string {
	var b strings.Builder
	b.WriteString(c.r.Method)
	b.WriteByte('\n')
	// S3 signs the path encoded once, every other service encoded twice.
	if c.service == serviceS3 {
		b.WriteString(escape(c.r.URL.Path, true))
	} else {
		b.WriteString(escape(c.r.URL.EscapedPath(), true))
	}
	b.WriteByte('\n')
	b.WriteString(canonicalQuery(c.query))
	b.WriteByte('\n')
	for _, name := range c.signature.signedHeaders {
		b.WriteString(name)
		b.WriteByte(':')
		b.WriteString(headerValue(c.r, name))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	b.WriteString(strings.Join(c.signature.signedHeaders, ";"))
	b.WriteByte('\n')
	b.WriteString(payloadHash)
	return b.String()
}

func headerValue(r *http.Request, name string) string {
	values := r.Header.Values(name)
	switch {
	case name == "host":
		return r.Host
	case name == "content-length" && len(values) == 0:
		return strconv.FormatInt(r.ContentLength, 10)
	}
	trimmed := make([]string, len(values))
	for i, value := range values {
		trimmed[i] = squeeze(value)
	}
	return strings.Join(trimmed, ",")
}

// squeeze trims a header's value and turns runs of spaces into one, as SigV4
// wants it.
func squeeze(value string) string {
	value = strings.Trim(value, " ")
	for strings.Contains(value, "  ") {
		value = strings.ReplaceAll(value, "  ", " ")
	}
	return value
}

func canonicalQuery(query url.Values) string {
	pairs := make([]string, 0, len(query))
	for name, values := range query {
		for _, value := range values {
			pairs = append(pairs, escape(name, false)+"="+escape(value, false))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func stringToSign(sig *signature, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	return strings.Join([]string{algorithm, sig.signedAt.Format(amzTimeLayout), sig.scope(), hex.EncodeToString(sum[:])}, "\n")
}

func signingKey(secret string, sig *signature) []byte {
	key := []byte("AWS4" + secret)
	for _, part := range []string{sig.date, sig.region, sig.service, "aws4_request"} {
		key = hmacSHA256(key, part)
	}
	return key
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// escape percent-encodes every byte outside RFC 3986's unreserved ones.
func escape(text string, keepSlash bool) string {
	var b strings.Builder
	for i := range len(text) {
		switch ch := text[i]; {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9',
			ch == '-', ch == '.', ch == '_', ch == '~', ch == '/' && keepSlash:
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

func invalidRequest(format string, args ...any) *apiError {
	return fail(http.StatusBadRequest, "InvalidRequest", format, args...)
}

// expiredToken is the answer to credentials that were good once.
func expiredToken(to service) *apiError {
	if to == serviceS3 {
		return refuse(http.StatusBadRequest, "ExpiredToken", "The provided token has expired.")
	}
	return refuse(http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired")
}
