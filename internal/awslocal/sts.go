package awslocal

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	assumeRole        = operation{"sts:AssumeRole", permitAssumeRole, runAssumeRole}
	getCallerIdentity = operation{"sts:GetCallerIdentity", permitGetCallerIdentity, runGetCallerIdentity}

	sessionNames = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	externalIDs  = regexp.MustCompile(`^[\w+=,.@:/-]+$`)
	// Tab, LF, CR and U+0020 to U+00FF.
	sessionPolicies = regexp.MustCompile("^[\t\n\r\u0020-\u00FF]+$")
)

const (
	stsNamespace      = "https://sts.amazonaws.com/doc/2011-06-15/"
	maxSessionPolicy  = 2048
	minSession        = 15 * time.Minute
	maxChainedSession = time.Hour
)

func routeSTS(c *call) (*operation, error) {
	form, err := url.ParseQuery(string(c.body.bytes()))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "MalformedQueryString", "The body is not a query string")
	}
	c.form = form
	switch action := form.Get("Action"); action {
	case "AssumeRole":
		return &assumeRole, nil
	case "GetCallerIdentity":
		return &getCallerIdentity, nil
	default:
		return nil, fail(http.StatusBadRequest, "InvalidAction", "Could not find operation %s for version %s", action, form.Get("Version"))
	}
}

func validation(format string, args ...any) error {
	return fail(http.StatusBadRequest, "ValidationError", format, args...)
}

func permitGetCallerIdentity(*Server, *call) error { return nil }

func runGetCallerIdentity(s *Server, c *call) (*response, error) {
	return xmlResponse(http.StatusOK, struct {
		XMLName   xml.Name `xml:"GetCallerIdentityResponse"`
		Namespace string   `xml:"xmlns,attr"`
		Arn       string   `xml:"GetCallerIdentityResult>Arn"`
		UserID    string   `xml:"GetCallerIdentityResult>UserId"`
		Account   string   `xml:"GetCallerIdentityResult>Account"`
		RequestID string   `xml:"ResponseMetadata>RequestId"`
	}{Namespace: stsNamespace, Arn: c.caller.arn, UserID: c.signature.accessKeyID, Account: c.caller.account, RequestID: c.requestID}), nil
}

// assumption is what an AssumeRole call asks for, checked for form.
type assumption struct {
	session  string
	duration time.Duration
	boundary *policy
}

func readAssumption(form url.Values) (assumption, error) {
	asked := assumption{session: form.Get("RoleSessionName"), duration: time.Hour}
	if !sessionNames.MatchString(asked.session) {
		return asked, validation("1 validation error detected: Value '%s' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*", asked.session)
	}
	if len(form.Get("RoleArn")) < 20 {
		return asked, validation("%s is invalid", form.Get("RoleArn"))
	}
	if id := form.Get("ExternalId"); form.Has("ExternalId") && (len(id) < 2 || len(id) > 1224 || !externalIDs.MatchString(id)) {
		return asked, validation("1 validation error detected: Value at 'externalId' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@:\\/-]*")
	}
	if form.Has("DurationSeconds") {
		seconds, err := strconv.Atoi(form.Get("DurationSeconds"))
		asked.duration = time.Duration(seconds) * time.Second
		if err != nil || asked.duration < minSession || asked.duration > 12*time.Hour {
			return asked, validation("1 validation error detected: Value '%s' at 'durationSeconds' failed to satisfy constraint: Member must have value between 900 and 43200", form.Get("DurationSeconds"))
		}
	}
	if form.Has("Policy") {
		text := form.Get("Policy")
		if utf8.RuneCountInString(text) > maxSessionPolicy {
			return asked, validation("1 validation error detected: Value at 'policy' failed to satisfy constraint: Member must have length less than or equal to %d", maxSessionPolicy)
		}
		if !sessionPolicies.MatchString(text) {
			return asked, validation("1 validation error detected: Value at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+")
		}
		boundary, err := parsePolicy(text, identityPolicy)
		if err != nil {
			return asked, fail(http.StatusBadRequest, "MalformedPolicyDocument", "%v", err)
		}
		asked.boundary = boundary
	}
	return asked, nil
}

// permitAssumeRole says no in one way only, whatever is wrong: a stranger must
// not learn whether the role exists or what its external ID is.
func permitAssumeRole(s *Server, c *call) error {
	arn := c.form.Get("RoleArn")
	asked, err := readAssumption(c.form)
	c.Role, c.Session = arn, asked.session
	if err != nil {
		return err
	}
	denied := func(why string) error {
		return refuse(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %s", c.caller.arn, arn).
			because("%s", why)
	}
	s.iam.mu.RLock()
	held := s.iam.roles[arn]
	s.iam.mu.RUnlock()
	if held == nil {
		return denied("there is no such role")
	}
	if !c.caller.answersTo(held.TrustPrincipal) && !c.caller.answersTo("arn:aws:iam::"+held.TrustPrincipal+":root") {
		return denied("the role doesn't trust the caller")
	}
	if held.ExternalID != "" && c.form.Get("ExternalId") != held.ExternalID {
		return denied("the external ID is missing or wrong")
	}
	own := access{action: "sts:AssumeRole", resource: arn, account: c.caller.account, context: map[string]string{"sts:externalid": c.form.Get("ExternalId")}}
	if c.caller.authorize(own) != nil {
		return denied("the caller's own policy doesn't allow it")
	}
	if c.caller.roleARN != "" && asked.duration > maxChainedSession {
		return validation("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	if asked.duration > held.MaxSession {
		return validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	return nil
}

func runAssumeRole(s *Server, c *call) (*response, error) {
	asked, err := readAssumption(c.form)
	if err != nil {
		return nil, err
	}
	arn := c.form.Get("RoleArn")
	parts := strings.SplitN(arn, ":", 6)
	name := parts[5][strings.LastIndex(parts[5], "/")+1:]
	created := &identity{
		principal: principal{
			arn:     "arn:aws:sts::" + parts[4] + ":assumed-role/" + name + "/" + asked.session,
			account: parts[4], roleARN: arn, session: asked.session, boundary: asked.boundary,
		},
		secret:  newID(40),
		token:   newID(512),
		expires: s.now().Add(asked.duration).Truncate(time.Second),
	}
	accessKeyID := "ASIA" + newID(16)
	s.iam.mu.Lock()
	s.iam.identities[accessKeyID] = created
	s.iam.mu.Unlock()
	return xmlResponse(http.StatusOK, struct {
		XMLName         xml.Name `xml:"AssumeRoleResponse"`
		Namespace       string   `xml:"xmlns,attr"`
		AccessKeyID     string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
		SecretAccessKey string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
		SessionToken    string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
		Expiration      string   `xml:"AssumeRoleResult>Credentials>Expiration"`
		Arn             string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
		AssumedRoleID   string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
		RequestID       string   `xml:"ResponseMetadata>RequestId"`
	}{
		Namespace: stsNamespace, AccessKeyID: accessKeyID, SecretAccessKey: created.secret, SessionToken: created.token,
		Expiration: created.expires.Format(time.RFC3339), Arn: created.principal.arn,
		AssumedRoleID: "AROA" + strings.ToUpper(name) + ":" + asked.session, RequestID: c.requestID,
	}), nil
}
