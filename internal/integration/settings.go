// Package integration keeps customers' settings: which bucket an environment
// stores its media in, through which role and under which prefix; whether the
// settings may still change; and whether the integration works, is blocked by
// an error of the customer's account, or is paused by an operator.
//
// An integration belongs to one lane of the outbox. This package alone writes
// lanes.held, and keeps it equal to "blocked or paused".
package integration

import (
	"fmt"
	"strings"

	"github.com/ownbucket/ownbucket/internal/bucket"
)

// Settings are what a customer chose for one environment (manual: microCMS
// 管理画面での設定), and what follows from it.
//
// They print as the environment's name alone, since the external ID must not
// reach logs.
type Settings struct {
	ServiceID string `db:"service_id" json:"service_id"`
	// EnvironmentID is empty for production; EnvironmentServiceID and
	// Directory then are too.
	EnvironmentID        string `db:"environment_id" json:"environment_id"`
	EnvironmentServiceID string `db:"environment_service_id" json:"environment_service_id"`
	// Directory is made of EnvironmentServiceID once, and then stored.
	Directory string `db:"directory" json:"directory"`

	Bucket  string `db:"bucket" json:"bucket"`
	Region  string `db:"region" json:"region"`
	RoleARN string `db:"role_arn" json:"role_arn"`
	// ExternalID is shared with the customer alone: it is in no JSON, error or
	// log.
	ExternalID string `db:"external_id" json:"-"`
	// Prefix has several levels ("media/path") and no outer slashes; empty is
	// the bucket's root.
	Prefix       string `db:"prefix" json:"prefix"`
	CustomDomain string `db:"custom_domain" json:"custom_domain"`
	PinFileNames bool   `db:"pin_file_names" json:"pin_file_names"`
	Memo         string `db:"memo" json:"memo"`

	// DistributionID opts into CDN purges, CDNPrefix is what the viewer's path
	// has before the key.
	DistributionID string `db:"distribution_id" json:"distribution_id"`
	CDNPrefix      string `db:"cdn_prefix" json:"cdn_prefix"`

	// BucketOwner is the bucket's AWS account as the connection test saw it;
	// empty until then.
	BucketOwner string `db:"bucket_owner" json:"bucket_owner,omitzero"`
}

// KeyPrefix is what all keys of the environment begin with.
func (s Settings) KeyPrefix() string { return bucket.KeyPrefix(s.Prefix, s.Directory) }

// Account is the customer's side, for package bucket. Its prefix is without
// the directory, so that an environment shares its production's session.
func (s Settings) Account() bucket.Account {
	return bucket.Account{
		ServiceID:     s.ServiceID,
		EnvironmentID: s.EnvironmentID,
		Bucket:        s.Bucket,
		Region:        s.Region,
		RoleARN:       s.RoleARN,
		ExternalID:    s.ExternalID,
		Prefix:        s.Prefix,
		Owner:         s.BucketOwner,
	}
}

// StampServiceID is the service ID in the metadata of the environment's
// objects (manual: x-amz-meta-microcms-service).
func (s Settings) StampServiceID() string {
	if s.EnvironmentID == "" {
		return s.ServiceID
	}
	return s.EnvironmentServiceID
}

// String names the environment, and is how settings appear in errors, the
// audit and logs.
func (s Settings) String() string { return environmentName(s.ServiceID, s.EnvironmentID) }

// Format keeps the external ID out of all that is printed.
func (s Settings) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

func environmentName(serviceID, environmentID string) string {
	if environmentID == "" {
		return fmt.Sprintf("service %q, production", serviceID)
	}
	return fmt.Sprintf("service %q, environment %q", serviceID, environmentID)
}

// moved tells whether files would be looked for elsewhere than under the
// other settings: what the lock forbids.
func (s Settings) moved(from Settings) bool {
	return s.Bucket != from.Bucket || s.Region != from.Region || s.Prefix != from.Prefix ||
		s.EnvironmentServiceID != from.EnvironmentServiceID || s.Directory != from.Directory
}

// trimPath drops one slash at either end: "/media/" can only mean "media".
// More of them are left for Validate to refuse.
func trimPath(path string) string {
	return strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
}
