package awslocal

import (
	"net/http"
	"strings"
)

// authorize decides one access as IAM does: a denial anywhere refuses; within
// the resource's account the identity's or the resource's policy must allow,
// across accounts both; and a session policy narrows what the role allows.
func (p *principal) authorize(a access) error {
	own := p.identityVerdict(a)
	resource := silent
	if a.policy != nil {
		resource = a.policy.evaluate(a, p)
	}
	switch {
	case own == denies:
		return p.denied(a, "with an explicit deny in an identity-based policy")
	case resource == denies:
		return p.denied(a, "with an explicit deny in a resource-based policy")
	}
	session := allows
	if p.boundary != nil {
		session = p.boundary.evaluate(a, nil)
	}
	if session == denies {
		return p.denied(a, "with an explicit deny in a session policy")
	}
	// A bucket policy's grant to the role is narrowed by the session policy
	// too; only one to the session's own ARN is not, which is why session
	// names must not be guessable. This stand-in narrows both.
	if session != allows {
		return p.denied(a, "because no session policy allows the %s action")
	}
	granted := own == allows || resource == allows
	if p.account != a.account {
		granted = own == allows && resource == allows
		if p.arn == anonymous.arn {
			granted = resource == allows
		}
	}
	if granted {
		return nil
	}
	if own != allows {
		return p.denied(a, "because no identity-based policy allows the %s action")
	}
	return p.denied(a, "because no resource-based policy allows the %s action")
}

func (p *principal) identityVerdict(a access) verdict {
	answer := silent
	for _, rights := range p.policies {
		switch rights.evaluate(a, nil) {
		case denies:
			return denies
		case allows:
			answer = allows
		}
	}
	return answer
}

// denied words the refusal as AWS does within one account; a stranger is told
// nothing.
func (p *principal) denied(a access, why string) error {
	why = strings.ReplaceAll(why, "%s", a.action)
	detailed := refuse(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: %s on resource: %q %s", p.arn, a.action, a.resource, why)
	if p.account == a.account {
		return detailed
	}
	return refuse(http.StatusForbidden, "AccessDenied", "Access Denied").because("%s", detailed.message)
}

// bucketARN and objectARN name S3's resources.
func bucketARN(bucket string) string { return "arn:aws:s3:::" + bucket }

func objectARN(bucket, key string) string { return "arn:aws:s3:::" + bucket + "/" + key }

// bucketAccess is an action on the bucket itself.
func (c *call) bucketAccess(b *bucket, action string) access {
	return c.accessTo(b, action, bucketARN(b.name))
}

func (c *call) objectAccess(b *bucket, action, key string) access {
	return c.accessTo(b, action, objectARN(b.name, key))
}

func (c *call) accessTo(b *bucket, action, resource string) access {
	context := map[string]string{
		"aws:principalarn":     c.caller.arn,
		"aws:principalaccount": c.caller.account,
		"aws:resourceaccount":  b.owner,
		"s3:resourceaccount":   b.owner,
		"aws:securetransport":  "false",
	}
	if c.r.TLS != nil {
		context["aws:securetransport"] = "true"
	}
	// A role's session is matched as its role by ARN conditions.
	if c.caller.roleARN != "" {
		context["aws:principalarn"] = c.caller.roleARN
	}
	for _, name := range []string{"prefix", "delimiter", "max-keys"} {
		if c.query.Has(name) {
			context["s3:"+name] = c.query.Get(name)
		}
	}
	for _, name := range []string{"If-Match", "If-None-Match", "X-Amz-Copy-Source", "X-Amz-Metadata-Directive"} {
		if value := c.r.Header.Get(name); value != "" {
			context["s3:"+strings.ToLower(name)] = value
		}
	}
	return access{action: action, resource: resource, account: b.owner, context: context, policy: b.rules.Load().policy}
}

// keyAccess is an action on the KMS key that a bucket encrypts with, as S3
// asks for it on the caller's behalf.
func (c *call) keyAccess(b *bucket, action string) access {
	return access{
		action: action, resource: b.kmsKey, account: b.owner,
		context: map[string]string{"kms:viaservice": "s3." + b.region + ".amazonaws.com", "kms:calleraccount": c.caller.account},
	}
}

// authorizeAll checks every access, and stops at the first that is refused.
func (c *call) authorizeAll(accesses ...access) error {
	for _, a := range accesses {
		if err := c.caller.authorize(a); err != nil {
			return err
		}
	}
	return nil
}
