package bucket_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestAProbeUsesEveryPermissionAndLeavesNothing(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	if err := c.open(t).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys := c.Keys(c.Bucket); len(keys) != 0 {
		t.Errorf("left: %q", keys)
	}
	want := map[string]int{"sts:AssumeRole": 1, "s3:PutObject": 1, "s3:GetObject": 1, "s3:CopyObject": 1, "s3:HeadObject": 1, "s3:DeleteObject": 3, "s3:ListObjectsV2": 1}
	if diff := cmp.Diff(want, c.Counts()); diff != "" {
		t.Error(diff)
	}
	for _, entry := range c.Log() {
		if strings.HasPrefix(entry.API, "s3:") && entry.API != "s3:ListObjectsV2" && !strings.HasPrefix(entry.Key, "media/.microcms-probe-") {
			t.Errorf("%s touched %q", entry.API, entry.Key)
		}
	}
}

func TestAProbeSaysWhatIsBrokenAndPassesOnceItIsMended(t *testing.T) {
	t.Parallel()
	without := func(action string) func(*testing.T, *customer) func() {
		return func(t *testing.T, c *customer) func() {
			policy := awslocal.CustomerPolicy(c.Bucket, c.Prefix)
			change := func(policy string) {
				if err := c.ChangeRole(c.RoleARN, func(r *awslocal.Role) { r.Policy = policy }); err != nil {
					t.Fatal(err)
				}
			}
			change(strings.Replace(policy, action, "s3:GetObjectAcl", 1))
			return func() { change(policy) }
		}
	}
	for _, tc := range []struct {
		name    string
		breakIt func(*testing.T, *customer) (mend func())
		code    string
		left    int
	}{
		{name: "no PutObject", breakIt: without("s3:PutObject"), code: failure.Denied},
		{name: "no GetObject", breakIt: without("s3:GetObject"), code: failure.Denied},
		{name: "no DeleteObject", breakIt: without("s3:DeleteObject"), code: failure.Denied},
		{name: "no ListBucket", breakIt: without("s3:ListBucket"), code: failure.Denied},
		{name: "another external ID", code: bucket.AssumeRoleDenied, breakIt: func(t *testing.T, c *customer) func() {
			change := func(id string) {
				if err := c.ChangeRole(c.RoleARN, func(r *awslocal.Role) { r.ExternalID = id }); err != nil {
					t.Fatal(err)
				}
			}
			change("another")
			return func() { change(c.ExternalID) }
		}},
		{name: "no bucket", code: bucket.NoSuchBucket, breakIt: func(t *testing.T, c *customer) func() {
			c.DeleteBucket(c.Bucket)
			return func() {
				if err := c.CreateBucket(c.Bucket, c.Options); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{name: "an unusable KMS key", code: bucket.KMSDenied, breakIt: func(t *testing.T, c *customer) func() {
			options := c.Options
			options.KMSKey = "arn:aws:kms:ap-northeast-1:123456789012:key/1"
			c.DeleteBucket(c.Bucket)
			if err := c.CreateBucket(c.Bucket, options); err != nil {
				t.Fatal(err)
			}
			return func() {
				c.DeleteBucket(c.Bucket)
				if err := c.CreateBucket(c.Bucket, c.Options); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCustomer(t)
			b := c.open(t)
			mend := tc.breakIt(t, c)
			err := b.Probe(t.Context())
			f := failure.Of(err)
			if f == nil || f.Class != failure.Integration || f.Code != tc.code {
				t.Errorf("got %v, want %s", err, tc.code)
			}
			keys := c.Keys(c.Bucket)
			if len(keys) != tc.left {
				t.Errorf("left: %q", keys)
			}
			for _, key := range keys {
				if !strings.Contains(err.Error(), key) {
					t.Errorf("%v doesn't name %q, which is left", err, key)
				}
			}
			if strings.Contains(err.Error(), c.ExternalID) {
				t.Errorf("the external ID shows: %v", err)
			}
			mend()
			if err := b.Probe(t.Context()); err != nil {
				t.Errorf("mended: %v", err)
			}
		})
	}
}

func TestAProbeAfterADenialOpensANewSession(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	b := c.open(t)
	// As where the customer revoked all older sessions of the role.
	c.Inject(awslocal.Rule{API: "s3:PutObject", Times: 1, Status: 403, Code: "AccessDenied"})
	if err := b.Probe(t.Context()); failure.Of(err) == nil || failure.Of(err).Code != failure.Denied {
		t.Errorf("got %v", err)
	}
	if err := b.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if n := c.Counts()["sts:AssumeRole"]; n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
}

func TestAProbeCutOffStillCleansUp(t *testing.T) {
	t.Parallel()
	for _, api := range []string{"s3:PutObject", "s3:GetObject", "s3:CopyObject", "s3:DeleteObject"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			c := newCustomer(t)
			b := c.open(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			skip := 0
			if api == "s3:DeleteObject" {
				skip = 1 // the one that only asks whether it may
			}
			c.Inject(awslocal.Rule{API: api, Skip: skip, Times: 1, AfterEffect: true, Before: func(context.Context, awslocal.Call) { cancel() }})
			err := b.Probe(ctx)
			if f := failure.Of(err); f == nil || f.Class != failure.Interrupted {
				t.Errorf("got %v", err)
			}
			if keys := c.Keys(c.Bucket); len(keys) != 0 {
				t.Errorf("left: %q", keys)
			}
		})
	}
}

// An integration may stay blocked for weeks, and is probed all that time.
func TestProbesDontPileUpWhereNothingMayBeDeleted(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	policy := strings.Replace(awslocal.CustomerPolicy(c.Bucket, c.Prefix), "s3:DeleteObject", "s3:GetObjectAcl", 1)
	if err := c.ChangeRole(c.RoleARN, func(r *awslocal.Role) { r.Policy = policy }); err != nil {
		t.Fatal(err)
	}
	b := c.open(t)
	for range 3 {
		if err := b.Probe(t.Context()); failure.Of(err) == nil || failure.Of(err).Code != failure.Denied {
			t.Errorf("got %v", err)
		}
	}
	if keys := c.Keys(c.Bucket); len(keys) != 0 {
		t.Errorf("left: %q", keys)
	}
}
