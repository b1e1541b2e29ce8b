package bucket

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// Account is a customer's side of an integration: which bucket, through which
// role, below which prefix. It prints as the environment's name, without the
// external ID.
type Account struct {
	ServiceID     string
	EnvironmentID string

	Bucket     string
	Region     string
	RoleARN    string
	ExternalID string `json:"-"`
	// Prefix is the integration's, without an environment's directory.
	Prefix string
	// Owner is the AWS account that the bucket belongs to, once seen; empty
	// when not known yet. Every call then fails on anybody else's bucket.
	Owner string
	// ReadPrefix lets an environment's copy read below its source's prefix.
	ReadPrefix *string
}

// Format keeps the external ID out of errors and logs.
func (a Account) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "account of service %q, environment %q", a.ServiceID, a.EnvironmentID)
}

func (a Account) check() error {
	for _, field := range []struct{ name, value string }{
		{"bucket", a.Bucket}, {"region", a.Region}, {"role ARN", a.RoleARN}, {"service ID", a.ServiceID},
	} {
		if field.value == "" {
			return invalidSettings(a, "the %s is missing", field.name)
		}
	}
	return nil
}

func invalidSettings(a Account, format string, args ...any) error {
	return failure.New(failure.Integration, InvalidSettings, "settings of service %q, environment %q: %w",
		a.ServiceID, a.EnvironmentID, fmt.Errorf(format, args...))
}

// Options of a Pool. The zero value of each but AWS means its default.
type Options struct {
	// AWS holds our own identity, region and endpoints.
	AWS aws.Config
	// PathStyle and SessionPolicyKMS are auto, true or false. auto: addresses
	// buckets by path at endpoints other than AWS's, and grants KMS at AWS's.
	PathStyle        string
	SessionPolicyKMS string
	// Brand is the word in the metadata, by default "microcms".
	Brand string
	// MaxClients bounds how many customers' sessions are kept, by default
	// 1,024. The one used longest ago goes first.
	MaxClients int
	// StallTimeout ends a request whose connection moved no byte for so long,
	// by default one minute. It isn't used when Transport is given.
	StallTimeout time.Duration
	// Transport replaces the pool's own.
	Transport http.RoundTripper
}

const (
	defaultBrand      = "microcms"
	defaultMaxClients = 1024
	// maxAttempts is pinned: the SDK's default has changed before. Longer
	// troubles are the outbox's to retry.
	maxAttempts = 3
	maxBackoff  = 5 * time.Second
)

// Pool hands out the buckets of all customers. They share one HTTP transport,
// and nothing else: each has its own credentials and its own retry quota.
type Pool struct {
	aws        aws.Config
	brand      string
	http       *http.Client
	awsS3      bool // AWS's own S3, which keeps all its promises
	plainHTTP  bool // a stand-in without TLS
	pathStyle  bool
	grantsKMS  bool
	sessionsMu sync.Mutex
	sessions   *simplelru.LRU[sessionKey, *session]
}

// brandWord is what may stand in an HTTP header's name.
var brandWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)

// NewPool checks the options. No request is sent before a bucket is used.
func NewPool(o Options) (*Pool, error) {
	p := &Pool{aws: o.AWS.Copy(), brand: cmp.Or(o.Brand, defaultBrand)}
	if !brandWord.MatchString(p.brand) {
		return nil, fmt.Errorf("brand %q: only letters, digits and hyphens", p.brand)
	}

	s3Endpoint := s3.NewFromConfig(p.aws).Options().BaseEndpoint
	stsEndpoint := sts.NewFromConfig(p.aws).Options().BaseEndpoint
	p.awsS3 = isAWS(s3Endpoint)
	p.plainHTTP = s3Endpoint != nil && strings.HasPrefix(*s3Endpoint, "http://")
	var err error
	if p.pathStyle, err = orAuto(o.PathStyle, !p.awsS3); err != nil {
		return nil, fmt.Errorf("path style: %w", err)
	}
	if p.grantsKMS, err = orAuto(o.SessionPolicyKMS, isAWS(stsEndpoint)); err != nil {
		return nil, fmt.Errorf("KMS in the session policy: %w", err)
	}

	transport := o.Transport
	if transport == nil {
		transport = newTransport(cmp.Or(o.StallTimeout, time.Minute))
	}
	p.http = &http.Client{
		Transport: guardedTransport{transport},
		// A redirect means a wrong region; followed, it would go unsigned.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	p.sessions, err = simplelru.NewLRU[sessionKey, *session](cmp.Or(o.MaxClients, defaultMaxClients), nil)
	if err != nil {
		return nil, fmt.Errorf("cache of %d clients: %w", o.MaxClients, err)
	}
	return p, nil
}

// CloseIdleConnections closes connections that no request uses.
func (p *Pool) CloseIdleConnections() {
	transport := p.http.Transport.(guardedTransport).base
	if t, ok := transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// HTTPClient is the client that all customers share, guards included.
func (p *Pool) HTTPClient() *http.Client { return p.http }

// Brand is the word that our metadata carries.
func (p *Pool) Brand() string { return p.brand }

// Bucket returns a customer's bucket. It is cheap and sends nothing: sessions
// are kept between calls, and opened on first use.
func (p *Pool) Bucket(a Account) (*Bucket, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	key := sessionKeyOf(a)

	p.sessionsMu.Lock()
	defer p.sessionsMu.Unlock()
	s, ok := p.sessions.Get(key)
	if !ok {
		var err error
		if s, err = p.newSession(a); err != nil {
			return nil, err
		}
		p.sessions.Add(key, s)
	}
	return &Bucket{pool: p, session: s, account: a, keyPrefix: KeyPrefix(a.Prefix, "")}, nil
}

// newRetryer is called once per customer: the quota that it holds ends retries
// while an endpoint is down, and one customer's must not end another's.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = maxAttempts
		o.MaxBackoff = maxBackoff
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(neverTwice)}, o.Retryables...)
	})
}

// neverTwice: what is classified already was decided below the SDK, and a
// stalled connection has held its worker up for long enough.
func neverTwice(err error) aws.Ternary {
	if isClassified(err) || errors.Is(err, os.ErrDeadlineExceeded) {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

func (p *Pool) newS3(a Account, credentials aws.CredentialsProvider) *s3.Client {
	return s3.NewFromConfig(p.aws, func(o *s3.Options) {
		o.Region = a.Region
		o.Credentials = credentials
		o.HTTPClient = p.http
		o.Retryer = newRetryer()
		o.RetryMaxAttempts = maxAttempts
		o.UsePathStyle = p.pathStyle
		o.EndpointResolverV2 = &endpoint{rules: s3.NewDefaultEndpointResolverV2(), bucket: a.Bucket}
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenSupported
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenSupported
		o.DisableLogOutputChecksumValidationSkipped = true
		o.DisableMultiRegionAccessPoints = true
		o.DisableS3ExpressSessionAuth = aws.Bool(true)
		o.UseARNRegion = false
		// Signed requests stay out of every log.
		o.ClientLogMode = 0
		o.Logger = logging.Nop{}
	})
}

func (p *Pool) newSTS(region string) *sts.Client {
	return sts.NewFromConfig(p.aws, func(o *sts.Options) {
		o.Region = cmp.Or(o.Region, region)
		o.HTTPClient = p.http
		o.Retryer = newRetryer()
		o.RetryMaxAttempts = maxAttempts
		o.ClientLogMode = 0
		o.Logger = logging.Nop{}
	})
}

// isAWS tells AWS's own endpoints, the default and VPC ones, from stand-ins.
func isAWS(endpoint *string) bool {
	if endpoint == nil || *endpoint == "" {
		return true
	}
	u, err := url.Parse(*endpoint)
	if err != nil {
		return false
	}
	for _, domain := range []string{".amazonaws.com", ".amazonaws.com.cn", ".api.aws"} {
		if strings.HasSuffix(u.Hostname(), domain) {
			return true
		}
	}
	return false
}

func orAuto(setting string, auto bool) (bool, error) {
	switch setting {
	case "", "auto":
		return auto, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q: want auto, true or false", setting)
}
