package awslocal_test

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// IAM user guide, "IAM policy elements: Variables and tags".
func TestPolicyVariablesStandForTheirValueOrMatchNothing(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Account: "123456789012"})
	const newer, older = "2012-10-17", "2008-10-17"
	for _, c := range []struct{ version, resource, key, code string }{
		{newer, "a${*}b", "a*b", ""},
		{newer, "a${*}b", "axb", "AccessDenied"},
		{newer, "a${?}b${$}", "a?b$", ""},
		{newer, "a${$}{aws:username}", "a${aws:username}", ""},
		{newer, "${aws:username}/*", "${aws:username}/k", "AccessDenied"},
		{newer, "${aws:username}/*", "/k", "AccessDenied"},
		{newer, "${aws:username}*", "k", "AccessDenied"},
		{newer, "*${aws:username}", "k", "AccessDenied"},
		{newer, "${a}", "${a}", "AccessDenied"},
		{newer, "${a}", "a", "AccessDenied"},
		{newer, "${}", "${}", "AccessDenied"},
		{newer, "${", "${", "AccessDenied"},
		{newer, "a${*", "a${*", "AccessDenied"},
		{newer, "a${*", "a${bcd", "AccessDenied"},
		{newer, "a${aws:username/*", "a${aws:username/k", "AccessDenied"},
		{newer, "a$b}$", "a$b}$", ""},
		{newer, "${aws:PrincipalAccount}/*", "123456789012/k", ""},
		{newer, "${AWS:principalaccount}/*", "123456789012/k", ""},
		{newer, "${aws:PrincipalAccount}/*", "210987654321/k", "AccessDenied"},
		{newer, "${aws:PrincipalAccount, 'all'}/*", "123456789012/k", ""},
		{newer, "${aws:PrincipalAccount, 'all'}/*", "all/k", "AccessDenied"},
		{newer, "${aws:PrincipalTag/team, 'com}pany*'}/*", "com}pany*/k", ""},
		{newer, "${aws:PrincipalTag/team, 'com}pany*'}/*", "com}panyx/k", "AccessDenied"},
		{newer, "${aws:PrincipalTag/team, all}/*", "all/k", "AccessDenied"},
		{newer, "${aws:PrincipalTag/team, 'all}/*", "all/k", "AccessDenied"},
		{older, "${aws:username}/*", "${aws:username}/k", ""},
		{older, "a${*}b", "a${x}b", ""},
	} {
		policy := fmt.Sprintf(`{"Version":%q,"Statement":{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::alpha-prod-assets/%s"}}`, c.version, c.resource)
		if _, err := w.put(w.s3(w.assume(policy)), c.key, "v"); codeOf(err) != c.code {
			t.Errorf("%s for %s, version %s: %v, want %q", c.resource, c.key, c.version, err, c.code)
		}
	}
}

func TestPolicyVariablesCountInConditions(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Account: "123456789012"})
	for _, c := range []struct{ operator, value, prefix, code string }{
		{"StringEquals", "a${*}", "a*", ""},
		{"StringEquals", "a${*}", "a${*}", "AccessDenied"},
		{"StringEquals", "a*", "a*", ""},
		{"StringEquals", "a*", "ab", "AccessDenied"},
		{"StringEquals", "${aws:username}", "${aws:username}", "AccessDenied"},
		{"StringEquals", "${a", "${a", "AccessDenied"},
		{"StringEqualsIgnoreCase", "X${aws:PrincipalAccount}", "x123456789012", ""},
		{"StringLike", "${aws:PrincipalAccount}/*", "123456789012/a", ""},
		{"StringLike", "${aws:username, 'all'}/*", "all/a", ""},
		{"StringLike", "${aws:username}*", "a", "AccessDenied"},
		{"StringNotEquals", "${aws:username}", "a", ""},
		{"StringNotLike", "${$}*", "$a", "AccessDenied"},
	} {
		policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{%q:{"s3:prefix":%q}}}}`, c.operator, c.value)
		_, err := w.s3(w.assume(policy)).ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &w.customer.Bucket, Prefix: &c.prefix})
		if codeOf(err) != c.code {
			t.Errorf("%s %s for %s: %v, want %q", c.operator, c.value, c.prefix, err, c.code)
		}
	}
}
