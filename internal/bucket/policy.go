package bucket

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// maxSessionPolicy is STS's limit for an inline session policy, in characters.
const maxSessionPolicy = 2048

type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Effect    string
	Action    []string
	Resource  string
	Condition map[string]map[string]string `json:",omitempty"`
}

// SessionPolicy cuts a session down to the account's bucket and prefix,
// whatever the customer's role allows.
//
// ListBucket has no condition on the prefix: HeadBucket and the check behind a
// 403 would fail. The KMS statement allows nothing by itself, as both the role
// and the key must agree, and only what S3 does on our behalf.
func SessionPolicy(a Account, kms bool) (string, error) {
	prefixes := []string{a.Prefix}
	if a.ReadPrefix != nil {
		prefixes = append(prefixes, *a.ReadPrefix)
	}
	for _, prefix := range prefixes {
		if !utf8.ValidString(prefix) {
			return "", invalidSettings(a, "prefix %q isn't valid UTF-8", prefix)
		}
	}

	partition := partitionOf(a.RoleARN)
	bucket := "arn:" + partition + ":s3:::" + a.Bucket
	p := policy{Version: "2012-10-17", Statement: []statement{
		{Effect: "Allow", Action: []string{"s3:ListBucket"}, Resource: bucket},
		{
			Effect:   "Allow",
			Action:   []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject"},
			Resource: objectsBelow(bucket, a.Prefix),
		},
	}}
	if a.ReadPrefix != nil {
		p.Statement = append(p.Statement, statement{
			Effect: "Allow", Action: []string{"s3:GetObject"}, Resource: objectsBelow(bucket, *a.ReadPrefix),
		})
	}
	if kms {
		p.Statement = append(p.Statement, statement{
			Effect:    "Allow",
			Action:    []string{"kms:GenerateDataKey", "kms:Decrypt"},
			Resource:  "*",
			Condition: map[string]map[string]string{"StringEquals": {"kms:ViaService": s3Host(partition, a.Region)}},
		})
	}

	text, err := encodePolicy(p)
	if err != nil {
		return "", fmt.Errorf("encode the session policy of service %q: %w", a.ServiceID, err)
	}
	if n := utf8.RuneCountInString(text); n > maxSessionPolicy {
		return "", failure.New(failure.Integration, SessionPolicyTooLarge,
			"the session policy for bucket %q of service %q has %d characters, and STS takes at most %d: shorten the prefix",
			a.Bucket, a.ServiceID, n, maxSessionPolicy)
	}
	return text, nil
}

// objectsBelow is the ARN of everything below a prefix. What IAM reads as a
// wildcard or a variable is spelled as IAM's variable for that very character.
func objectsBelow(bucketARN, prefix string) string {
	literal := strings.NewReplacer("*", "${*}", "?", "${?}", "$", "${$}")
	return bucketARN + "/" + literal.Replace(KeyPrefix(prefix, "")) + "*"
}

// encodePolicy writes JSON in the characters that STS takes, U+0020–U+00FF.
func encodePolicy(p policy) (string, error) {
	var raw bytes.Buffer
	enc := json.NewEncoder(&raw)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return "", err
	}
	var text strings.Builder
	for _, r := range strings.TrimSuffix(raw.String(), "\n") {
		switch {
		case r <= 0xFF:
			text.WriteRune(r)
		case r <= 0xFFFF:
			fmt.Fprintf(&text, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&text, `\u%04x\u%04x`, high, low)
		}
	}
	return text.String(), nil
}

// partitionOf reads the second field of an ARN: aws, aws-cn or aws-us-gov.
func partitionOf(arn string) string {
	if fields := strings.SplitN(arn, ":", 3); len(fields) == 3 && fields[1] != "" {
		return fields[1]
	}
	return "aws"
}

func s3Host(partition, region string) string {
	if partition == "aws-cn" {
		return "s3." + region + ".amazonaws.com.cn"
	}
	return "s3." + region + ".amazonaws.com"
}
