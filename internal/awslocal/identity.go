package awslocal

import (
	"cmp"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Credentials sign calls. SessionToken is empty for a user's own.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
}

// User is a principal with long-lived keys: the CMS's own identity.
type User struct {
	// Name is part of its ARN; "ownbucket" when empty.
	Name string
	// Account is the operator's when empty.
	Account string
	// AccessKeyID and SecretAccessKey are made up when empty.
	AccessKeyID, SecretAccessKey string
	// Policy is the identity policy; one that allows everything when empty,
	// which in another account's bucket still allows nothing.
	Policy string
}

// Role is what a customer lets be assumed.
type Role struct {
	ARN string
	// TrustPrincipal is who may assume it: an account ID, an account's root
	// ARN, or the ARN of one user or role. Empty trusts nobody.
	TrustPrincipal string
	// ExternalID must be given by whoever assumes the role; empty asks for
	// none, which is the confused deputy's open door.
	ExternalID string
	// Policy is the role's identity policy; empty allows nothing.
	Policy string
	// MaxSession bounds a session's duration; one hour when zero.
	MaxSession time.Duration
}

// principal is who makes a call, and what it may do.
type principal struct {
	arn     string
	account string
	// roleARN and session are set for a role's session.
	roleARN, session string
	policies         []*policy // one of them must allow
	boundary         *policy   // the session policy; nil when there is none
}

var anonymous = principal{arn: "anonymous"}

// identity is a set of credentials.
type identity struct {
	principal principal
	secret    string
	token     string    // empty for long-lived keys
	expires   time.Time // zero for long-lived keys
}

func (i *identity) expired(now time.Time) bool { return !i.expires.IsZero() && !now.Before(i.expires) }

type role struct {
	Role
	account string
	policy  *policy
}

// directory holds who exists. Role sessions refer to the role by its ARN, so
// that a change to its policy reaches sessions already made, as in AWS.
type directory struct {
	mu         sync.RWMutex
	identities map[string]*identity // by access key ID
	roles      map[string]*role     // by ARN
}

func newDirectory() directory {
	return directory{identities: map[string]*identity{}, roles: map[string]*role{}}
}

// identify finds the credentials that the call names, and checks its session
// token. The directory answers with a copy that later changes don't touch.
func (d *directory) identify(c *call, now time.Time) (identity, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	known, ok := d.identities[c.signature.accessKeyID]
	token := c.r.Header.Get("X-Amz-Security-Token")
	if !ok || (known.token != "" && token == "") {
		if c.service == serviceS3 {
			return identity{}, refuse(http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.").
				with("AWSAccessKeyId", c.signature.accessKeyID)
		}
		return identity{}, refuse(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(known.token)) != 1 {
		if c.service == serviceS3 {
			return identity{}, refuse(http.StatusBadRequest, "InvalidToken", "The provided token is malformed or otherwise invalid.")
		}
		return identity{}, refuse(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	found := *known
	if found.principal.roleARN != "" {
		// A role that was deleted allows nothing any more.
		found.principal.policies = nil
		if held := d.roles[found.principal.roleARN]; held != nil && held.policy != nil {
			found.principal.policies = []*policy{held.policy}
		}
	}
	return found, nil
}

const allowAll = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`

// AddUser makes a user, and returns the credentials that sign as it.
func (s *Server) AddUser(user User) (Credentials, error) {
	user.Account = cmp.Or(user.Account, s.config.OperatorAccount)
	user.Name = cmp.Or(user.Name, "ownbucket")
	rights, err := parsePolicy(cmp.Or(user.Policy, allowAll), identityPolicy)
	if err != nil {
		return Credentials{}, fmt.Errorf("awslocal: policy of user %s: %w", user.Name, err)
	}
	keys := Credentials{
		AccessKeyID:     cmp.Or(user.AccessKeyID, "AKIA"+newID(16)),
		SecretAccessKey: cmp.Or(user.SecretAccessKey, newID(40)),
	}
	s.iam.mu.Lock()
	defer s.iam.mu.Unlock()
	s.iam.identities[keys.AccessKeyID] = &identity{
		principal: principal{
			arn:      "arn:aws:iam::" + user.Account + ":user/" + user.Name,
			account:  user.Account,
			policies: []*policy{rights},
		},
		secret: keys.SecretAccessKey,
	}
	return keys, nil
}

// SetRole adds a role or replaces the one of that ARN: its trust, external ID
// and policy change for running sessions too.
func (s *Server) SetRole(r Role) error {
	parts := strings.SplitN(r.ARN, ":", 6)
	if len(parts) != 6 || parts[2] != "iam" || !strings.HasPrefix(parts[5], "role/") {
		return fmt.Errorf("awslocal: %q is not the ARN of a role", r.ARN)
	}
	held := &role{Role: r, account: parts[4]}
	held.MaxSession = cmp.Or(held.MaxSession, time.Hour)
	if r.Policy != "" {
		var err error
		if held.policy, err = parsePolicy(r.Policy, identityPolicy); err != nil {
			return fmt.Errorf("awslocal: policy of role %s: %w", r.ARN, err)
		}
	}
	s.iam.mu.Lock()
	defer s.iam.mu.Unlock()
	s.iam.roles[r.ARN] = held
	return nil
}

// ChangeRole edits a role in place: the customer who breaks or mends it.
func (s *Server) ChangeRole(arn string, change func(*Role)) error {
	s.iam.mu.RLock()
	held, ok := s.iam.roles[arn]
	s.iam.mu.RUnlock()
	if !ok {
		return fmt.Errorf("awslocal: no role %s", arn)
	}
	changed := held.Role
	change(&changed)
	if changed.ARN != arn {
		return fmt.Errorf("awslocal: role %s can't change its ARN", arn)
	}
	return s.SetRole(changed)
}

// DeleteRole removes a role; its sessions can do nothing any more.
func (s *Server) DeleteRole(arn string) {
	s.iam.mu.Lock()
	defer s.iam.mu.Unlock()
	delete(s.iam.roles, arn)
}

// ExpireSessions ends every session's credentials now.
func (s *Server) ExpireSessions() {
	now := s.now()
	s.iam.mu.Lock()
	defer s.iam.mu.Unlock()
	for _, known := range s.iam.identities {
		if known.token != "" {
			known.expires = now
		}
	}
}
