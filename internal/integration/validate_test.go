package integration_test

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/integration"
)

func validSettings() integration.Settings {
	return integration.Settings{
		ServiceID: "SERVICE#0b1f", Bucket: "alpha-prod-assets", Region: "ap-northeast-1",
		RoleARN: role, ExternalID: secret, Prefix: "media",
	}
}

func TestValidateKnowsEachRule(t *testing.T) {
	t.Parallel()
	long := strings.Repeat
	type settings = integration.Settings
	for _, c := range []struct {
		setting string
		edit    func(s *settings, value string)
		valid   []string
		// refused values and a part of what is said of them
		refused map[string]string
	}{
		{
			"service_id", func(s *settings, v string) { s.ServiceID = v },
			[]string{"s", "SERVICE#xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"},
			map[string]string{"": "must not be empty", "サービス": "printable ASCII", "a\nb": "printable ASCII", " a": "space", long("a", 257): "of at most 256"},
		},
		{
			"environment_id", func(s *settings, v string) {
				s.EnvironmentID, s.EnvironmentServiceID, s.Directory = v, "e", bucket.Directory("e")
			},
			[]string{"staging"},
			map[string]string{"環境": "printable ASCII", "a ": "space"},
		},
		{
			"environment_service_id", func(s *settings, v string) {
				s.EnvironmentID, s.EnvironmentServiceID, s.Directory = "e", v, bucket.Directory(v)
			},
			[]string{"s-staging"},
			map[string]string{"": "must not be empty", "環境": "printable ASCII"},
		},
		{
			"environment_service_id", func(s *settings, v string) { s.EnvironmentServiceID = v },
			[]string{""},
			map[string]string{"s-staging": "must not be given for production"},
		},
		{
			"directory", func(s *settings, v string) {
				s.EnvironmentID, s.EnvironmentServiceID, s.Directory = "e", "e", v
			},
			[]string{"e-0123456789ab"},
			map[string]string{"": "must not be empty", "..": "must not be", "a/b": "one level", "/": "one level", "a\x00": "control character"},
		},
		{
			"bucket", func(s *settings, v string) { s.Bucket = v },
			[]string{"abc", "my.bucket-1", "1.2.3", long("a", 63), "prefix-123456789012-ap-northeast-1-an", "s3alias", "1.2.3.4.5"},
			map[string]string{
				"": "is missing", "ab": "3 to 63", long("a", 64): "3 to 63", "Abc": "a-z", "a_b": "a-z", "バケット": "a-z",
				"-abc": "begin and end", "abc.": "begin and end", "a..b": "two dots", "192.168.5.4": "IP address",
				"xn--abc": "xn--", "arn:aws:s3:::abc": "not an ARN", "ap-0123456789-s3alias": "alias of an access point",
				"abc--ol-s3": "Object Lambda", "abc--apne1-az4--x-s3": "directory bucket", "abc.mrap": "Multi-Region",
				"abc--table-s3": "table bucket", "abc\n": "a-z",
			},
		},
		{
			"region", func(s *settings, v string) { s.Region = v },
			[]string{"ap-northeast-1", "us-east-1", "ap-southeast-5", "il-central-1"},
			map[string]string{
				"": "is missing", "AP-NORTHEAST-1": "region's code", "tokyo": "region's code", "ap-northeast-1a": "region's code",
				"ap-northeast-1.evil.example": "region's code", "cn-north-1": "partition aws-cn", "us-gov-west-1": "partition aws-us-gov",
			},
		},
		{
			"region", func(s *settings, v string) { s.RoleARN, s.Region = "arn:aws-cn:iam::123456789012:role/R", v },
			[]string{"cn-north-1"},
			map[string]string{"us-east-1": "partition aws,"},
		},
		{
			"role_arn", func(s *settings, v string) { s.RoleARN = v },
			[]string{role, "arn:aws:iam::123456789012:role/path/of-it/R", "arn:aws:iam::123456789012:role/a+=,.@-_Z"},
			map[string]string{
				"": "is missing", "SampleRole": "role's ARN", "arn:aws:iam::12345678901:role/R": "role's ARN",
				"arn:aws:iam::123456789012:user/U": "role's ARN", "arn:aws:iam::123456789012:role/": "role's ARN",
				"arn:aws:iam::123456789012:role/a b": "role's ARN", role + "\n": "role's ARN",
				"arn:aws-other:iam::123456789012:role/R": "role's ARN", role + long("R", 64): "role's ARN",
			},
		},
		{
			"external_id", func(s *settings, v string) { s.ExternalID = v },
			[]string{"ab", "aZ0_+=,.@:/-", long("a", 1224)},
			map[string]string{
				"": "is missing", "a": "2 to 1224", long("a", 1225): "2 to 1224", "a b": "without spaces",
				"外部の": "A-Z", "ab\n": "A-Z", `a"b`: "A-Z",
			},
		},
		{
			"prefix", func(s *settings, v string) { s.Prefix = v },
			[]string{"", "media", "media/path/of/levels", "メディア", "a b/c+d%20e", "...", "*", long("a", 512)},
			map[string]string{
				"/": "slash", "/media": "slash", "media/": "slash", "a//b": "two slashes", "a/../b": "..", ".": `"."`,
				`a\b`: `'\\'`, "a\x00b": "control character", "a\xffb": "UTF-8", "a\uFFFEb": "U+FFFE", " a": "space",
				long("a", 513): "of at most 512", long("?", 512): "session policy",
			},
		},
		{
			"custom_domain", func(s *settings, v string) { s.CustomDomain = v },
			[]string{"", "https://my-media.example.com", "https://example.com:8443/a/b%20c", "https://xn--eckwd4c7c.example"},
			map[string]string{
				"my-media.example.com": "https://", "http://example.com": "https://", "//example.com": "https://",
				"https://": "host", "https://a_b.example": "host", "https://メディア.example": "host", "https://[::1]": "host",
				"https://user:pass@example.com": "user name or password", "https://example.com?a=b": "query",
				"https://example.com?": "query", "https://example.com#a": "fragment", "https://example.com/": "end in a slash",
				"https://example.com/a b": "percent-encoded", "https://example.com/a//b": "two slashes",
				"https://example.com/../a": "..", "https://example.com/%2e%2e": "..", "https://example.com:": "colon",
				"https://example.com/" + long("a", 500): "must be a URL", "https://exa mple.com": "must be a URL",
				"https://example.com/%zz": "must be a URL",
			},
		},
		{
			"memo", func(s *settings, v string) { s.Memo = v },
			[]string{"", "メモ:\n\t1行目\r\n2行目"},
			map[string]string{long("a", 10_001): "of at most 10000", "a\x00": "control", "a\x1b[31m": "control", "\xff": "UTF-8"},
		},
		{
			"distribution_id", func(s *settings, v string) { s.DistributionID = v },
			[]string{"", "E2EXAMPLE1ABCD"},
			map[string]string{"e2example": "ID", "E": "ID", "arn:aws:cloudfront::1:distribution/E1": "ID", "d1.cloudfront.net": "ID"},
		},
		{
			"cdn_prefix", func(s *settings, v string) { s.CDNPrefix = v },
			[]string{"", "cdn", "a/b", "%E3%83%A1"},
			map[string]string{
				"/a": "slash", "a/": "slash", "a*": "wildcards", "a?b": "wildcards", "a b": "encoded", "メ": "encoded",
				"a//b": "two slashes", "../a": "..", long("a", 513): "of at most 512",
			},
		},
		{
			"bucket_owner", func(s *settings, v string) { s.BucketOwner = v },
			[]string{"", "123456789012"},
			map[string]string{"12345": "12 digits"},
		},
	} {
		for _, value := range c.valid {
			s := validSettings()
			c.edit(&s, value)
			if err := s.Validate(); err != nil {
				t.Errorf("%s %q: %v", c.setting, value, err)
			}
		}
		for value, words := range c.refused {
			s := validSettings()
			c.edit(&s, value)
			err := s.Validate()
			var field *integration.FieldError
			if !errors.As(err, &field) || field.Setting != c.setting || field.Rule == "" || !strings.Contains(err.Error(), words) {
				t.Errorf("%s %q: %v; want a FieldError that says %q", c.setting, value, err, words)
				continue
			}
			if c.setting == "external_id" && len(value) > 2 && strings.Contains(err.Error(), value) {
				t.Errorf("the error repeats the external ID: %v", err)
			}
			if strings.Contains(err.Error(), "pass@") || strings.ContainsAny(err.Error(), "\x00\x1b") {
				t.Errorf("%s: the error isn't safe to show: %q", c.setting, err)
			}
		}
	}
}

func TestValidateNamesEveryFaultAtOnce(t *testing.T) {
	t.Parallel()
	err := integration.Settings{ServiceID: "s"}.Validate()
	for _, setting := range []string{"bucket", "region", "role_arn", "external_id"} {
		if err == nil || !strings.Contains(err.Error(), setting+" is missing") {
			t.Errorf("the error doesn't name %s: %v", setting, err)
		}
	}
}

// FuzzValidate holds what the settings are for against whatever is accepted:
// a URL on the customer's own host, and keys that stay below the prefix.
func FuzzValidate(f *testing.F) {
	f.Add("https://my-media.example.com/a%20b", "media/path", "a.png")
	f.Add("https://example.com:8443", "メディア/*", "ファイル 1.png")
	f.Add("https://a@b", "a/../b", "..")
	f.Fuzz(func(t *testing.T, domain, prefix, fileName string) {
		s := validSettings()
		s.CustomDomain, s.Prefix = domain, prefix
		if s.Validate() != nil {
			return
		}
		key, err := bucket.Key(s.Prefix, s.Directory, fileName)
		if err != nil {
			return
		}
		if path.Clean("/"+key) != "/"+key || !strings.HasPrefix(key, s.KeyPrefix()) || s.KeyPrefix() != "" && s.KeyPrefix() != prefix+"/" {
			t.Errorf("key %q isn't below prefix %q as it was given", key, prefix)
		}
		if domain == "" {
			return
		}
		location, err := url.Parse(bucket.URL(s.CustomDomain, s.Bucket, s.Region, key))
		if err != nil || location.Scheme != "https" || location.User != nil || location.Hostname() == "" ||
			location.RawQuery != "" || location.Fragment != "" || !strings.HasSuffix(location.Path, "/"+key) {
			t.Errorf("domain %q gives the URL %v, %v", domain, location, err)
		}
	})
}
