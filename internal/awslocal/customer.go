package awslocal

import (
	"cmp"
	"fmt"
)

// CustomerPolicy is the IAM policy that the manual has customers give their
// role; an empty prefix is the bucket's root.
func CustomerPolicy(bucket, prefix string) string {
	return fmt.Sprintf(`{
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "Bucket",
            "Effect": "Allow",
            "Action": ["s3:GetBucketLocation", "s3:ListBucket"],
            "Resource": %q
        },
        {
            "Sid": "Objects",
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": %q
        }
    ]
}`, bucketARN(bucket), objectARN(bucket, below(prefix)))
}

// CustomerPolicyWithPurge adds what the purge of a CDN needs.
func CustomerPolicyWithPurge(bucket, prefix, account, distribution string) string {
	return fmt.Sprintf(`{
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": ["s3:GetBucketLocation", "s3:ListBucket"],
            "Resource": %q
        },
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": %q
        },
        {
            "Effect": "Allow",
            "Action": ["cloudfront:CreateInvalidation", "cloudfront:GetInvalidation"],
            "Resource": %q
        }
    ]
}`, bucketARN(bucket), objectARN(bucket, below(prefix)), distributionARN(account, distribution))
}

// PublicBucketPolicy is the manual's bucket policy for delivery without
// CloudFront.
func PublicBucketPolicy(bucket, prefix string) string {
	return fmt.Sprintf(`{
    "Version": "2012-10-17",
    "Statement": [
        {"Sid": "Delivery", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": %q}
    ]
}`, objectARN(bucket, below(prefix)))
}

func below(prefix string) string {
	if prefix == "" {
		return "*"
	}
	return prefix + "/*"
}

// Customer is one customer's side of an integration, as the manual has it set
// up. AddCustomer fills in what is empty.
type Customer struct {
	// Account owns all of it; "123456789012" when empty.
	Account string
	Bucket  string // required
	// Region is "us-east-1" when empty.
	Region string
	// RoleARN is made from the bucket's name when empty.
	RoleARN string
	// ExternalID is made up when empty.
	ExternalID string
	// Prefix is the URL prefix; empty is the bucket's root.
	Prefix string
	// Policy is the manual's when empty.
	Policy string
	// Distribution is made when set, and Policy then allows its purge.
	Distribution string
	// Options describe the bucket further.
	Options BucketOptions
}

// AddCustomer makes bucket, role and distribution in one go; the role trusts
// the operator's account.
func (s *Server) AddCustomer(c Customer) (Customer, error) {
	c.Account = cmp.Or(c.Account, "123456789012")
	c.Region = cmp.Or(c.Region, "us-east-1")
	c.RoleARN = cmp.Or(c.RoleARN, "arn:aws:iam::"+c.Account+":role/"+c.Bucket)
	c.ExternalID = cmp.Or(c.ExternalID, "external-"+newID(24))
	if c.Policy == "" {
		c.Policy = CustomerPolicy(c.Bucket, c.Prefix)
		if c.Distribution != "" {
			c.Policy = CustomerPolicyWithPurge(c.Bucket, c.Prefix, c.Account, c.Distribution)
		}
	}
	c.Options.Region, c.Options.OwnerAccount = c.Region, c.Account
	if err := s.CreateBucket(c.Bucket, c.Options); err != nil {
		return c, err
	}
	if c.Distribution != "" {
		s.AddDistribution(c.Distribution, c.Account)
	}
	return c, s.SetRole(Role{
		ARN: c.RoleARN, ExternalID: c.ExternalID, Policy: c.Policy,
		TrustPrincipal: "arn:aws:iam::" + s.config.OperatorAccount + ":root",
	})
}
