package integration

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/ownbucket/ownbucket/internal/bucket"
)

// Change is what an operator or the CMS wants of an environment's settings:
// the fields that aren't nil. The directory follows from
// EnvironmentServiceID.
type Change struct {
	ServiceID            string
	EnvironmentID        string
	EnvironmentServiceID *string
	Bucket               *string
	Region               *string
	RoleARN              *string
	ExternalID           *string `json:"-"`
	// Prefix, CDNPrefix and CustomDomain may have a slash at their ends, which
	// is dropped.
	Prefix         *string
	CustomDomain   *string
	PinFileNames   *bool
	Memo           *string
	DistributionID *string
	CDNPrefix      *string
	// BucketOwner is what the connection test saw.
	BucketOwner *string

	// Tested, where given, is the outcome (of Preview) that passed the
	// connection test: another outcome isn't saved.
	Tested *Settings
	// SkipTest applies the change untested, which needs a Reason. ConfirmSharedRole
	// says that another service may use the role too, which needs one as well; it is
	// implied by SkipTest.
	SkipTest          bool
	ConfirmSharedRole bool
	Reason            string
	Actor             string
}

// Saved is what Set did.
type Saved struct {
	Integration Integration
	Created     bool
	// GeneratedExternalID is set where none was given for new settings. It
	// can't be shown again: the customer's trust policy needs it.
	GeneratedExternalID string `json:"-"`
}

// Format keeps the external ID out of all that is printed.
func (s Saved) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.Integration.String()) }

// apply returns the settings after the change. Whatever moves the files to
// another bucket makes its owner unknown.
func (c Change) apply(s Settings) Settings {
	before := s
	s.ServiceID, s.EnvironmentID = c.ServiceID, c.EnvironmentID
	for _, field := range []struct{ to, from *string }{
		{&s.EnvironmentServiceID, c.EnvironmentServiceID},
		{&s.Bucket, c.Bucket},
		{&s.Region, c.Region},
		{&s.RoleARN, c.RoleARN},
		{&s.ExternalID, c.ExternalID},
		{&s.Prefix, c.Prefix},
		{&s.CustomDomain, c.CustomDomain},
		{&s.Memo, c.Memo},
		{&s.DistributionID, c.DistributionID},
		{&s.CDNPrefix, c.CDNPrefix},
	} {
		if field.from != nil {
			*field.to = *field.from
		}
	}
	if c.PinFileNames != nil {
		s.PinFileNames = *c.PinFileNames
	}
	s.Prefix, s.CDNPrefix = trimPath(s.Prefix), trimPath(s.CDNPrefix)
	s.CustomDomain = strings.TrimSuffix(s.CustomDomain, "/")
	if s.EnvironmentServiceID != before.EnvironmentServiceID {
		s.Directory = bucket.Directory(s.EnvironmentServiceID)
	}
	if c.Tested != nil && c.Tested.EnvironmentServiceID == s.EnvironmentServiceID {
		s.Directory = c.Tested.Directory // which may have another name than usual
	}
	if s.Bucket != before.Bucket || s.Region != before.Region {
		s.BucketOwner = ""
	}
	if c.BucketOwner != nil {
		s.BucketOwner = *c.BucketOwner
	}
	return s
}

// skipped is why the connection test was left out, empty where it wasn't.
func (c Change) skipped() string {
	if !c.SkipTest {
		return ""
	}
	return plain(c.Reason)
}

// errPreviewed rolls a previewed change back.
var errPreviewed = errors.New("previewed")

// Preview does all that Set does and rolls it back: the connection test is
// made with its outcome. An external ID that it makes up must then be given
// to Set.
func (s *Store) Preview(ctx context.Context, change Change) (Saved, error) {
	var saved Saved
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		var err error
		if saved, err = s.set(ctx, tx, change); err != nil {
			return err
		}
		return errPreviewed
	})
	if !errors.Is(err, errPreviewed) {
		return Saved{}, fmt.Errorf("settings of %s: %w", environmentName(change.ServiceID, change.EnvironmentID), err)
	}
	return saved, nil
}

// Set creates an environment's settings or changes the named fields of them.
// It neither tests the connection nor asks who may change what: its caller
// does. Settings that are blocked are probed again at once.
func (s *Store) Set(ctx context.Context, change Change) (Saved, error) {
	name := environmentName(change.ServiceID, change.EnvironmentID)
	if (change.SkipTest || change.ConfirmSharedRole) && strings.TrimSpace(change.Reason) == "" {
		return Saved{}, fmt.Errorf("set the settings of %s: to skip the connection test, or to share a role, needs a reason", name)
	}
	var saved Saved
	err := s.db.Tx(ctx, func(tx *sqlx.Tx) error {
		var err error
		saved, err = s.set(ctx, tx, change)
		return err
	})
	if err != nil {
		return Saved{}, fmt.Errorf("set the settings of %s: %w", name, err)
	}
	return saved, nil
}

func (s *Store) set(ctx context.Context, tx *sqlx.Tx, change Change) (Saved, error) {
	laneID, err := s.makeLane(ctx, tx, change.ServiceID, change.EnvironmentID)
	if err != nil {
		return Saved{}, err
	}
	current, exists, err := s.ByLane(ctx, tx, laneID)
	if err != nil {
		return Saved{}, err
	}
	saved := Saved{Created: !exists}
	if !exists && change.ExternalID == nil {
		saved.GeneratedExternalID = newExternalID()
		change.ExternalID = &saved.GeneratedExternalID
	}
	settings := change.apply(current.Settings)
	if err := settings.Validate(); err != nil {
		return Saved{}, err
	}
	if !exists || settings.RoleARN != current.RoleARN || settings.ExternalID != current.ExternalID {
		mayShareRole := change.SkipTest || change.ConfirmSharedRole || exists && settings.RoleARN == current.RoleARN
		if err := s.requireOwnAccess(ctx, tx, settings, mayShareRole); err != nil {
			return Saved{}, err
		}
	}
	if exists && settings.moved(current.Settings) {
		if err := s.requireUnlocked(ctx, tx, laneID); err != nil {
			return Saved{}, err
		}
	}
	if !exists || settings.moved(current.Settings) {
		if settings, err = s.place(ctx, tx, laneID, settings); err != nil {
			return Saved{}, err
		}
	}
	if change.Tested != nil && !settings.sameAs(*change.Tested) {
		return Saved{}, fmt.Errorf("%w: test the connection again", ErrChanged)
	}
	if err := s.write(ctx, tx, laneID, settings, change.skipped()); err != nil {
		return Saved{}, err
	}
	if err := s.audit(ctx, tx, "integration set", settings.String(), change.Actor, change.Reason); err != nil {
		return Saved{}, err
	}
	written, _, err := s.ByLane(ctx, tx, laneID)
	if err != nil {
		return Saved{}, err
	}
	outcome := []Integration{written}
	err = s.addUse(ctx, tx, outcome)
	saved.Integration = outcome[0]
	return saved, err
}

// sameAs compares all but the bucket's owner, which the test itself finds out.
func (s Settings) sameAs(tested Settings) bool {
	tested.BucketOwner = s.BucketOwner
	return s == tested
}

func (s *Store) write(ctx context.Context, tx *sqlx.Tx, laneID int64, settings Settings, testSkippedReason string) error {
	record := struct {
		Settings
		LaneID            int64  `db:"lane_id"`
		TestSkippedReason string `db:"test_skipped_reason"`
	}{settings, laneID, testSkippedReason}
	_, err := tx.NamedExecContext(ctx, s.db.SQL(`
		INSERT INTO {integrations} (lane_id, environment_service_id, directory, bucket, region, role_arn,
			external_id, prefix, custom_domain, pin_file_names, memo, distribution_id, cdn_prefix,
			bucket_owner, test_skipped_reason, created_at, updated_at)
		VALUES (:lane_id, :environment_service_id, :directory, :bucket, :region, :role_arn,
			:external_id, :prefix, :custom_domain, :pin_file_names, :memo, :distribution_id, :cdn_prefix,
			:bucket_owner, :test_skipped_reason, {now}, {now})
		ON CONFLICT (lane_id) DO UPDATE SET environment_service_id = excluded.environment_service_id,
			directory = excluded.directory, bucket = excluded.bucket, region = excluded.region,
			role_arn = excluded.role_arn, external_id = excluded.external_id, prefix = excluded.prefix,
			custom_domain = excluded.custom_domain, pin_file_names = excluded.pin_file_names,
			memo = excluded.memo, distribution_id = excluded.distribution_id,
			cdn_prefix = excluded.cdn_prefix, bucket_owner = excluded.bucket_owner,
			test_skipped_reason = excluded.test_skipped_reason, updated_at = excluded.updated_at`), record)
	if err != nil {
		return fmt.Errorf("write the settings: %w", err)
	}
	return s.probeNow(ctx, tx, laneID)
}

// newExternalID has 26 random characters (130 bits) and says whose it is.
func newExternalID() string { return "ownbucket-" + rand.Text() }
