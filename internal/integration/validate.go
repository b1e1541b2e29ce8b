package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
)

// Limits that are ours; those of AWS stand in the patterns.
const (
	// maxPrefix leaves about half of a key's 1,024 bytes to the directory and
	// the file name.
	maxPrefix    = 512
	maxDomain    = 512
	maxCDNPrefix = 512
	maxMemo      = 10_000
	// maxRoleARN is STS's.
	maxRoleARN = 2048
)

// Where the rules come from.
const (
	ruleBucket       = "Amazon S3, bucket naming rules"
	ruleRegion       = "AWS, region codes"
	ruleRole         = "AWS STS, AssumeRole: RoleArn"
	ruleExternalID   = "manual: 外部ID; AWS STS, AssumeRole: ExternalId"
	ruleAccess       = "AWS IAM, the confused deputy problem"
	rulePrefix       = "manual: URLプレフィックス; Amazon S3, object key names"
	rulePolicy       = "AWS STS, AssumeRole: Policy"
	ruleDomain       = "manual: カスタムドメイン"
	ruleMemo         = "manual: メモ"
	ruleDistribution = "Amazon CloudFront, distribution IDs"
	ruleCDNPrefix    = "Amazon CloudFront, invalidation paths"
	ruleOwner        = "AWS, account IDs"
	ruleEvents       = "the events' contract"
	ruleEnvironment  = "manual: 複数環境での取り扱い"
)

// FieldError says what is wrong with one setting.
type FieldError struct {
	// Setting is its name in JSON; the CLI's flag has hyphens instead.
	Setting string
	// Fault continues the sentence that the setting's name begins.
	Fault string
	// Rule is where the rule comes from.
	Rule string
}

func (e *FieldError) Error() string { return fmt.Sprintf("%s %s (%s)", e.Setting, e.Fault, e.Rule) }

// Validate holds the settings against every rule that needs no look at AWS or
// at other settings. Its errors are joined [FieldError]s.
func (s Settings) Validate() error {
	var faults []error
	check := func(setting, fault, rule string) {
		if fault != "" {
			faults = append(faults, &FieldError{setting, fault, rule})
		}
	}
	faults = append(faults, s.environmentFaults()...)
	check("bucket", bucketFault(s.Bucket), ruleBucket)
	check("region", regionFault(s.Region, s.RoleARN), ruleRegion)
	check("role_arn", roleFault(s.RoleARN), ruleRole)
	check("external_id", externalIDFault(s.ExternalID), ruleExternalID)
	check("prefix", prefixFault(s.Prefix), rulePrefix)
	check("custom_domain", domainFault(s.CustomDomain), ruleDomain)
	check("memo", memoFault(s.Memo), ruleMemo)
	check("distribution_id", distributionFault(s.DistributionID), ruleDistribution)
	check("cdn_prefix", cdnPrefixFault(s.CDNPrefix), ruleCDNPrefix)
	check("bucket_owner", ownerFault(s.BucketOwner), ruleOwner)
	if len(faults) == 0 {
		check("prefix", s.sessionPolicyFault(), rulePolicy)
	}
	return errors.Join(faults...)
}

// environmentFaults asks the events' own rules, since the IDs must match
// those that events are published with.
func (s Settings) environmentFaults() []error {
	var faults []error
	check := func(setting, fault, rule string) {
		if fault != "" {
			faults = append(faults, &FieldError{setting, fault, rule})
		}
	}
	const valid = "-"
	check("service_id", reason(events.EnvironmentDeleted{}.Validate(s.ServiceID, valid)), ruleEvents)
	if s.EnvironmentID == "" {
		if s.EnvironmentServiceID != "" || s.Directory != "" {
			check("environment_service_id", "must not be given for production, whose files stand in no directory",
				ruleEnvironment)
		}
		return faults
	}
	check("environment_id", reason(events.EnvironmentDeleted{}.Validate(valid, s.EnvironmentID)), ruleEvents)
	created := events.EnvironmentCreated{EnvironmentServiceID: s.EnvironmentServiceID}
	if fault := reason(created.Validate(valid, valid)); fault != "" {
		check("environment_service_id", fault, ruleEvents)
	} else {
		check("directory", directoryFault(s.Directory), ruleEnvironment)
	}
	return faults
}

// reason is the fault that an event's validation found.
func reason(err error) string {
	var invalid *events.InvalidError
	if errors.As(err, &invalid) {
		return invalid.Reason
	}
	return ""
}

var (
	bucketCharacters = regexp.MustCompile(`^[a-z0-9.-]*$`)
	bucketEnds       = regexp.MustCompile(`^[a-z0-9].*[a-z0-9]$`)
	regionCode       = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d{1,2}$`)
	roleARN          = regexp.MustCompile(
		`^arn:(aws|aws-cn|aws-us-gov):iam::\d{12}:role/([\x21-\x2E\x30-\x7E]+/)*[\w+=,.@-]{1,64}$`)
	externalID     = regexp.MustCompile(`^[\w+=,.@:/-]*$`)
	hostName       = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
	urlPath        = regexp.MustCompile(`^([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*$`)
	distributionID = regexp.MustCompile(`^E[A-Z0-9]{1,31}$`)
	cdnPath        = regexp.MustCompile(`^[A-Za-z0-9._!$&'()+,;=:@/%-]*$`)
	accountID      = regexp.MustCompile(`^\d{12}$`)
)

// bucketFault leaves alone what can't exist but breaks no rule of form. The
// account-regional names prefix-ACCOUNT-REGION-an are general purpose buckets.
func bucketFault(name string) string {
	switch {
	case name == "":
		return "is missing"
	case strings.HasPrefix(name, "arn:"):
		return fmt.Sprintf("must be the bucket's name, not an ARN: %s", quote(name))
	case len(name) < 3 || len(name) > 63:
		return fmt.Sprintf("must have 3 to 63 characters: %s has %d", quote(name), utf8.RuneCountInString(name))
	case !bucketCharacters.MatchString(name):
		return fmt.Sprintf("must consist of a-z, 0-9, dots and hyphens: %s", quote(name))
	case !bucketEnds.MatchString(name):
		return fmt.Sprintf("must begin and end with a letter or a digit: %s", quote(name))
	case strings.Contains(name, ".."):
		return fmt.Sprintf("must not have two dots in a row: %s", quote(name))
	case strings.HasPrefix(name, "xn--"):
		return fmt.Sprintf("must not begin with xn--: %s", quote(name))
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Sprintf("must not be an IP address: %s", quote(name))
	}
	for suffix, kind := range map[string]string{
		"-s3alias":   "the alias of an access point",
		"--ol-s3":    "the alias of an Object Lambda access point",
		".mrap":      "the alias of a Multi-Region access point",
		"--x-s3":     "a directory bucket",
		"--table-s3": "a table bucket",
	} {
		if strings.HasSuffix(name, suffix) {
			return fmt.Sprintf("must be a general purpose bucket (汎用), not %s: %s", kind, quote(name))
		}
	}
	return ""
}

// regionFault also holds the region against the role's partition: no role of
// one reaches the buckets of another.
func regionFault(region, role string) string {
	switch {
	case region == "":
		return "is missing"
	case !regionCode.MatchString(region):
		return fmt.Sprintf("must be a region's code, such as ap-northeast-1: %s", quote(region))
	}
	parts := roleARN.FindStringSubmatch(role)
	if parts == nil {
		return ""
	}
	partition := "aws"
	switch {
	case strings.HasPrefix(region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		partition = "aws-us-gov"
	}
	if parts[1] != partition {
		return fmt.Sprintf("%s is in AWS's partition %s, and the role in %s: both must be in one", region, partition, parts[1])
	}
	return ""
}

func roleFault(role string) string {
	switch {
	case role == "":
		return "is missing"
	case len(role) > maxRoleARN || !roleARN.MatchString(role):
		return fmt.Sprintf("must be a role's ARN, such as arn:aws:iam::123456789012:role/SampleRole: %s", quote(role))
	}
	return ""
}

// externalIDFault never repeats the value.
func externalIDFault(id string) string {
	switch {
	case id == "":
		return "is missing"
	case len(id) < 2 || len(id) > 1224:
		return fmt.Sprintf("must have 2 to 1224 characters, and has %d", utf8.RuneCountInString(id))
	case !externalID.MatchString(id):
		return "must consist of A-Z, a-z, 0-9 and _+=,.@:/-, without spaces"
	}
	return ""
}

func prefixFault(prefix string) string {
	switch {
	case prefix == "":
		return ""
	case len(prefix) > maxPrefix:
		return fmt.Sprintf("has %d bytes, of at most %d, which leave room for file names: %s",
			len(prefix), maxPrefix, quote(prefix))
	case strings.HasPrefix(prefix, "/") || strings.HasSuffix(prefix, "/"):
		return fmt.Sprintf("must not begin or end with a slash: %s", quote(prefix))
	case strings.TrimSpace(prefix) != prefix:
		return fmt.Sprintf("must not begin or end with a space: %s", quote(prefix))
	}
	return levelsFault(prefix)
}

// directoryFault is the last guard of an environment's deletion, which deletes
// the whole directory.
func directoryFault(directory string) string {
	switch {
	case directory == "":
		return "must not be empty outside production"
	case strings.Contains(directory, "/"):
		return fmt.Sprintf("must be one level: %s", quote(directory))
	}
	return levelsFault(directory)
}

// levelsFault holds each level of a path against the rules of file names: it
// must survive in a key byte for byte, and never lead out of where it stands.
func levelsFault(path string) string {
	if path == "" {
		return ""
	}
	for level := range strings.SplitSeq(path, "/") {
		if level == "" {
			return fmt.Sprintf("must not have two slashes in a row: %s", quote(path))
		}
		if fault := reason(events.ValidateFileName(level)); fault != "" {
			return fmt.Sprintf("has the level %s, which %s", quote(level), fault)
		}
	}
	return ""
}

// sessionPolicyFault counts the KMS statement even where it won't be sent, so
// that settings stay valid when SESSION_POLICY_KMS changes.
func (s Settings) sessionPolicyFault() string {
	if _, err := bucket.SessionPolicy(s.Account(), true); err != nil {
		return fmt.Sprintf("can't be spelt in a session policy: %s", err)
	}
	return ""
}

// domainFault repeats no URL that may hold a password.
func domainFault(domain string) string {
	if domain == "" {
		return ""
	}
	const example = "such as https://my-media.example.com"
	location, err := url.Parse(domain)
	switch {
	case err != nil || len(domain) > maxDomain:
		return "must be a URL, " + example
	case location.User != nil:
		return "must not hold a user name or password"
	case location.Scheme != "https":
		return fmt.Sprintf("must begin with https://, %s: %s", example, quote(domain))
	case strings.ContainsAny(domain, "?#"):
		return "must have neither a query nor a fragment"
	case len(location.Hostname()) > 253 || !hostName.MatchString(location.Hostname()):
		return fmt.Sprintf("must name a host in ASCII (an international one as xn--…), %s: %s", example, quote(domain))
	case strings.HasSuffix(location.Host, ":"):
		return fmt.Sprintf("must not end its host with a colon: %s", quote(domain))
	case !urlPath.MatchString(location.EscapedPath()) || !strings.HasSuffix(domain, location.Host+location.EscapedPath()):
		return fmt.Sprintf("must have a percent-encoded path: %s", quote(domain))
	case strings.HasSuffix(location.Path, "/"):
		return fmt.Sprintf("must not end in a slash: %s", quote(domain))
	}
	if fault := levelsFault(strings.TrimPrefix(location.Path, "/")); fault != "" {
		return fault
	}
	return ""
}

func memoFault(memo string) string {
	switch {
	case len(memo) > maxMemo:
		return fmt.Sprintf("has %d bytes, of at most %d", len(memo), maxMemo)
	case !utf8.ValidString(memo):
		return "is not valid UTF-8"
	case strings.ContainsFunc(memo, func(r rune) bool {
		return unicode.IsControl(r) && !slices.Contains([]rune{'\n', '\r', '\t'}, r)
	}):
		return "must not contain control characters other than line breaks and tabs"
	}
	return ""
}

func distributionFault(id string) string {
	if id != "" && !distributionID.MatchString(id) {
		return fmt.Sprintf("must be a distribution's ID, such as E2EXAMPLE1ABCD: %s", quote(id))
	}
	return ""
}

// cdnPrefixFault refuses what CloudFront reads as a wildcard or wants encoded.
func cdnPrefixFault(prefix string) string {
	switch {
	case len(prefix) > maxCDNPrefix:
		return fmt.Sprintf("has %d bytes, of at most %d: %s", len(prefix), maxCDNPrefix, quote(prefix))
	case strings.HasPrefix(prefix, "/") || strings.HasSuffix(prefix, "/"):
		return fmt.Sprintf("must not begin or end with a slash: %s", quote(prefix))
	case !cdnPath.MatchString(prefix):
		return fmt.Sprintf("must be a percent-encoded path without wildcards: %s", quote(prefix))
	}
	return levelsFault(prefix)
}

func ownerFault(owner string) string {
	if owner != "" && !accountID.MatchString(owner) {
		return fmt.Sprintf("must be an account ID of 12 digits: %s", quote(owner))
	}
	return ""
}

// quote makes a refused value safe to stand in an error, shortened.
func quote(value string) string {
	const most = 64 // characters
	if runes := []rune(value); len(runes) > most {
		return fmt.Sprintf("%q…", string(runes[:most]))
	}
	return fmt.Sprintf("%q", value)
}
