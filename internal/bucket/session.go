package bucket

import (
	"context"
	"crypto/rand"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/ownbucket/ownbucket/internal/failure"
)

const (
	// sessionLength is what every role allows: our own identity is mostly a
	// role too, and chained roles may not ask for more than an hour.
	sessionLength = time.Hour
	// A session is replaced five to ten minutes before its end: the spread
	// keeps customers who began together from renewing together.
	expiryWindow = 10 * time.Minute
	expiryJitter = 0.5
	// assumeTimeout bounds the one AssumeRole that many callers wait for: it
	// doesn't end when the first of them gives up.
	assumeTimeout = 30 * time.Second
)

// session is a customer's credentials and client, shared by all their events.
type session struct {
	s3          *s3.Client
	credentials *aws.CredentialsCache
}

// sessionKey is everything in an Account that a session depends on. The owner
// is checked per call, and an environment that has its production's settings
// has its session too.
type sessionKey struct {
	serviceID, bucket, region, roleARN, externalID, prefix string

	hasReadPrefix bool
	readPrefix    string
}

func sessionKeyOf(a Account) sessionKey {
	key := sessionKey{
		serviceID: a.ServiceID, bucket: a.Bucket, region: a.Region,
		roleARN: a.RoleARN, externalID: a.ExternalID, prefix: a.Prefix,
	}
	if a.ReadPrefix != nil {
		key.hasReadPrefix, key.readPrefix = true, *a.ReadPrefix
	}
	return key
}

func (p *Pool) newSession(a Account) (*session, error) {
	policy, err := SessionPolicy(a, p.grantsKMS)
	if err != nil {
		return nil, err
	}
	credentials := p.Credentials(a, policy)
	return &session{s3: p.newS3(a, credentials), credentials: credentials}, nil
}

// Credentials are a session in the account's role under a session policy, kept
// and renewed while they are used. Bucket has its own; this is for the other
// services that we call for a customer.
func (p *Pool) Credentials(a Account, sessionPolicy string) *aws.CredentialsCache {
	provider := &roleProvider{sts: p.newSTS(a.Region), account: a, policy: sessionPolicy}
	return aws.NewCredentialsCache(provider, func(o *aws.CredentialsCacheOptions) {
		o.ExpiryWindow = expiryWindow
		o.ExpiryWindowJitterFrac = expiryJitter
	})
}

// AssumeRole opens a session only to see whether the role lets us in, and
// returns the role's AWS account. Nothing is kept.
func (p *Pool) AssumeRole(ctx context.Context, a Account) (accountID string, err error) {
	policy, err := SessionPolicy(a, p.grantsKMS)
	if err != nil {
		return "", err
	}
	provider := &roleProvider{sts: p.newSTS(a.Region), account: a, policy: policy}
	credentials, err := provider.Retrieve(ctx)
	if err != nil {
		return "", err
	}
	return credentials.AccountID, nil
}

// Identity asks AWS who we are ourselves.
func (p *Pool) Identity(ctx context.Context) (arn string, err error) {
	out, err := p.newSTS("us-east-1").GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", Classify(Call{Operation: opIdentity}, err)
	}
	return aws.ToString(out.Arn), nil
}

// roleProvider assumes a customer's role, and says what a refusal means. The
// cache above it makes many first calls wait for one.
type roleProvider struct {
	sts     *sts.Client
	account Account
	policy  string
}

// Retrieve contains a panic: the cache calls it in a goroutine of the SDK's,
// where nobody else would.
func (r *roleProvider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	return failure.ContainResult(func() (aws.Credentials, error) { return r.assume(ctx) })
}

func (r *roleProvider) assume(ctx context.Context) (aws.Credentials, error) {
	ctx, cancel := context.WithTimeout(withoutGuard(ctx), assumeTimeout)
	defer cancel()

	role := stscreds.NewAssumeRoleProvider(r.sts, r.account.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = sessionName(r.account.ServiceID)
		o.Duration = sessionLength
		o.Policy = &r.policy
		if r.account.ExternalID != "" {
			o.ExternalID = &r.account.ExternalID
		}
	})
	credentials, err := role.Retrieve(ctx)
	if err != nil {
		call := Call{Operation: opAssumeRole, ServiceID: r.account.ServiceID, Bucket: r.account.Bucket, Role: r.account.RoleARN}
		return aws.Credentials{}, redact(Classify(call, err), r.account.ExternalID)
	}
	return credentials, nil
}

// redact takes the external ID out of an error: STS quotes one that it finds
// malformed.
func redact(f *failure.Error, externalID string) error {
	if externalID == "" || !strings.Contains(f.Error(), externalID) {
		return f
	}
	text := strings.ReplaceAll(f.Error(), externalID, "[external ID]")
	return failure.New(f.Class, f.Code, "%s", text).WithRequestID(f.RequestID)
}

const (
	maxSessionName = 64
	sessionRandom  = 12
)

var notInSessionName = regexp.MustCompile(`[^A-Za-z0-9_+=,.@-]+`)

// sessionName tells the customer's CloudTrail which service it was. Its random
// end keeps a bucket policy from naming the session's ARN, which would escape
// the session policy.
func sessionName(serviceID string) string {
	name := notInSessionName.ReplaceAllString(serviceID, "-")
	name = name[:min(len(name), maxSessionName-sessionRandom-1)]
	return name + "-" + strings.ToLower(rand.Text()[:sessionRandom])
}
