package bucket_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestSixtyFourFirstCallsAssumeTheRoleOnce(t *testing.T) {
	t.Parallel()
	w := newWire(t, head(`"e"`))
	p := w.pool(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			a := account
			if i%2 == 0 { // an environment that has its production's settings
				a.EnvironmentID, a.Owner = "staging", "123456789012"
			}
			b, err := p.Bucket(a)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := b.Head(t.Context(), "media/a", false); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(w.assumed()); n != 1 {
		t.Errorf("%d calls of AssumeRole", n)
	}
}

func TestASessionIsForWhatItWasOpenedFor(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bucket.Account){
		"service":     func(a *bucket.Account) { a.ServiceID = "SERVICE#other" },
		"bucket":      func(a *bucket.Account) { a.Bucket = "beta" },
		"region":      func(a *bucket.Account) { a.Region = "us-east-1" },
		"role":        func(a *bucket.Account) { a.RoleARN += "2" },
		"external ID": func(a *bucket.Account) { a.ExternalID = "rotated" },
		"prefix":      func(a *bucket.Account) { a.Prefix = "med" },
		"read prefix": func(a *bucket.Account) { a.ReadPrefix = aws.String("") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, head(`"e"`))
			p := w.pool(t)
			other := account
			change(&other)
			for _, a := range []bucket.Account{account, other, account, other} {
				b, err := p.Bucket(a)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := b.Head(t.Context(), "media/a", false); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(w.assumed()); n != 2 {
				t.Errorf("%d calls of AssumeRole for two accounts that differ in their %s", n, name)
			}
		})
	}
}

func TestAssumeRoleSendsTheExternalIDPolicyAndAnUnguessableName(t *testing.T) {
	t.Parallel()
	w := newWire(t, head(`"e"`))
	var names []string
	for range 2 {
		if _, err := w.bucket(t).Head(t.Context(), "media/a", false); err != nil {
			t.Fatal(err)
		}
	}
	for _, call := range w.assumed() {
		if got := call.form.Get("ExternalId"); got != externalID {
			t.Errorf("external ID %q", got)
		}
		if got := call.form.Get("DurationSeconds"); got != "3600" {
			t.Errorf("duration %q", got)
		}
		if got := call.form.Get("RoleArn"); got != account.RoleARN {
			t.Errorf("role %q", got)
		}
		// A stand-in for STS needn't know KMS.
		if policy := call.form.Get("Policy"); !json.Valid([]byte(policy)) || strings.Contains(policy, "kms:") {
			t.Errorf("policy %s", policy)
		}
		for name := range call.form {
			if strings.HasPrefix(name, "Tags") || name == "SourceIdentity" {
				t.Errorf("%s needs another grant", name)
			}
		}
		names = append(names, call.form.Get("RoleSessionName"))
	}
	form := regexp.MustCompile(`^SERVICE-0f0e-[a-z0-9]{12}$`)
	if len(names) != 2 || names[0] == names[1] || !form.MatchString(names[0]) || !form.MatchString(names[1]) {
		t.Errorf("session names %q", names)
	}
}

func TestSessionNamesFitWhateverTheServiceIsCalled(t *testing.T) {
	t.Parallel()
	w := newWire(t, head(`"e"`))
	for _, id := range []string{"s", "サービス", strings.Repeat("x#", 100), "a b/c"} {
		b := w.bucket(t, func(a *bucket.Account) { a.ServiceID = id })
		if _, err := b.Head(t.Context(), "media/a", false); err != nil {
			t.Fatal(err)
		}
	}
	for _, call := range w.assumed() {
		if name := call.form.Get("RoleSessionName"); !regexp.MustCompile(`^[\w+=,.@-]{2,64}$`).MatchString(name) {
			t.Errorf("session name %q", name)
		}
	}
}

func TestTheSessionPolicyGrantsKMSWhereSaid(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting string
		sts     *string
		want    bool
	}{
		{"", nil, true}, {"auto", aws.String("https://sts.eu-west-1.amazonaws.com"), true},
		{"auto", aws.String("http://127.0.0.1:1"), false},
		{"true", aws.String("http://127.0.0.1:1"), true}, {"false", nil, false},
	} {
		w := newWire(t, head(`"e"`))
		p := w.pool(t, func(o *bucket.Options) {
			o.SessionPolicyKMS = tc.setting
			o.AWS.BaseEndpoint = tc.sts
			o.Transport = plain{w}
		})
		b, err := p.Bucket(account)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Head(t.Context(), "media/a", false); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(w.assumed()[0].form.Get("Policy"), "kms:"); got != tc.want {
			t.Errorf("%q, STS at %q: KMS %t", tc.setting, aws.ToString(tc.sts), got)
		}
	}
}

// plain sends everything to the test's server, without TLS.
type plain struct{ *wire }

func (p plain) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme = "http"
	return redirect(p).RoundTrip(req)
}

func TestBucketsAreAddressedByPathAtStandInsOnly(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting  string
		endpoint *string
		host     string
	}{
		{"", nil, "alpha.s3.ap-northeast-1.amazonaws.com"},
		{"true", nil, "s3.ap-northeast-1.amazonaws.com"},
		{"auto", aws.String("http://storage.example"), "storage.example"},
		{"false", aws.String("http://storage.example"), "alpha.storage.example"},
	} {
		w := newWire(t, head(`"e"`))
		p := w.pool(t, func(o *bucket.Options) {
			o.PathStyle, o.AWS.BaseEndpoint, o.Transport = tc.setting, tc.endpoint, plain{w}
		})
		b, err := p.Bucket(account)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Head(t.Context(), "media/a", false); err != nil {
			t.Fatal(err)
		}
		if got := w.only(t).host; got != tc.host {
			t.Errorf("%q: host %q, want %q", tc.setting, got, tc.host)
		}
	}
}

func TestOptionsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]bucket.Options{
		"path style": {PathStyle: "yes"}, "KMS": {SessionPolicyKMS: "on"},
		"brand": {Brand: "micro cms"}, "clients": {MaxClients: -1},
	} {
		if _, err := bucket.NewPool(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAnAccountWithGapsIsTheIntegrationsFailure(t *testing.T) {
	t.Parallel()
	p, err := bucket.NewPool(bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, gap := range map[string]func(*bucket.Account){
		"bucket": func(a *bucket.Account) { a.Bucket = "" }, "region": func(a *bucket.Account) { a.Region = "" },
		"role": func(a *bucket.Account) { a.RoleARN = "" },
	} {
		a := account
		gap(&a)
		if _, err := p.Bucket(a); failure.Of(err) == nil || failure.Of(err).Class != failure.Integration {
			t.Errorf("no %s: %v", name, err)
		}
	}
}

func TestTheClientUsedLongestAgoGoesFirst(t *testing.T) {
	t.Parallel()
	w := newWire(t, head(`"e"`))
	p := w.pool(t, func(o *bucket.Options) { o.MaxClients = 2 })
	for _, name := range []string{"a", "b", "a", "c", "a", "b"} {
		acc := account
		acc.Bucket = "bucket-" + name
		b, err := p.Bucket(acc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Head(t.Context(), "media/a", false); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.assumed()); n != 4 { // a, b, c, and b again
		t.Errorf("%d calls of AssumeRole, want 4", n)
	}
}

func TestRefusalsOfSTSAreSortedByWhoseTheyAre(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status int
		code   string
		class  failure.Class
		want   string
	}{
		{403, "AccessDenied", failure.Integration, bucket.AssumeRoleDenied},
		{400, "PackedPolicyTooLarge", failure.Integration, bucket.SessionPolicyTooLarge},
		{400, "ValidationError", failure.Integration, bucket.AssumeRoleRefused},
		{400, "MalformedPolicyDocument", failure.Integration, bucket.AssumeRoleRefused},
		{403, "RegionDisabledException", failure.Integration, bucket.AssumeRoleRefused},
		{403, "ExpiredToken", failure.Transient, bucket.OwnIdentity},
		{403, "InvalidClientTokenId", failure.Transient, bucket.OwnIdentity},
		{403, "SignatureDoesNotMatch", failure.Transient, bucket.OwnIdentity},
		{400, "Throttling", failure.Transient, failure.Throttled},
		{429, "NeverHeardOf", failure.Transient, failure.Throttled},
		{408, "NeverHeardOf", failure.Transient, failure.Timeout},
		{500, "InternalFailure", failure.Transient, failure.ServerError},
	} {
		t.Run(tc.code, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, stored)
			w.sts = stsError(tc.status, tc.code, "value '"+externalID+"' is bad")
			_, err := w.bucket(t).Put(t.Context(), put(stream("x"), 1))
			f := failure.Of(err)
			if f == nil || f.Class != tc.class || f.Code != tc.want {
				t.Fatalf("got %v", err)
			}
			if f.RequestID == "" || !strings.Contains(err.Error(), account.RoleARN) || !strings.Contains(err.Error(), "PutObject") {
				t.Errorf("request ID %q: %v", f.RequestID, err)
			}
			if strings.Contains(err.Error(), externalID) {
				t.Errorf("the external ID shows: %v", err)
			}
			if len(w.calls()) != 0 {
				t.Error("S3 was called")
			}
		})
	}
}

func TestWithoutCredentialsOfOurOwnTheCustomerIsNotBlamed(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	p := w.pool(t, func(o *bucket.Options) {
		o.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{}, errors.New("no instance role")
		})
	})
	b, err := p.Bucket(account)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Head(t.Context(), "media/a", false)
	if f := failure.Of(err); f.Class != failure.Transient || f.Code != bucket.OwnIdentity {
		t.Errorf("%s: %v", f.Code, err)
	}
}

func TestATurnedAwaySessionIsReplaced(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"ExpiredToken", "InvalidAccessKeyId", "InvalidToken"} {
		w := newWire(t, each(t, s3Error(400, code, ""), noContent))
		b := w.bucket(t)
		if err := b.Delete(t.Context(), "media/a", "e"); err == nil {
			t.Errorf("%s passed", code)
		}
		if err := b.Delete(t.Context(), "media/a", "e"); err != nil {
			t.Error(err)
		}
		if n := len(w.assumed()); n != 2 {
			t.Errorf("%s: %d sessions, want 2", code, n)
		}
	}
}

func TestAssumeRoleCanBeTriedWithoutTheExternalID(t *testing.T) {
	t.Parallel()
	w := newWire(t, stored)
	p := w.pool(t)
	open := account
	open.ExternalID = ""
	for _, a := range []bucket.Account{account, open, account} {
		if id, err := p.AssumeRole(t.Context(), a); err != nil || id != "123456789012" {
			t.Errorf("%q %v", id, err)
		}
	}
	calls := w.assumed()
	if len(calls) != 3 || calls[1].form.Has("ExternalId") {
		t.Errorf("%d calls; external ID sent: %t", len(calls), calls[1].form.Has("ExternalId"))
	}
}
