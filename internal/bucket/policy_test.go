package bucket_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestTheSessionPolicyIsTheBucketAndThePrefix(t *testing.T) {
	t.Parallel()
	a := account
	a.ReadPrefix = aws.String("production")
	got, err := bucket.SessionPolicy(a, true)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Version":"2012-10-17","Statement":[` +
		`{"Effect":"Allow","Action":["s3:ListBucket"],"Resource":"arn:aws:s3:::alpha"},` +
		`{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject","s3:DeleteObject"],"Resource":"arn:aws:s3:::alpha/media/*"},` +
		`{"Effect":"Allow","Action":["s3:GetObject"],"Resource":"arn:aws:s3:::alpha/production/*"},` +
		`{"Effect":"Allow","Action":["kms:GenerateDataKey","kms:Decrypt"],"Resource":"*",` +
		`"Condition":{"StringEquals":{"kms:ViaService":"s3.ap-northeast-1.amazonaws.com"}}}]}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestResourcesOfTheSessionPolicy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ prefix, role, want string }{
		{"", "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/*"`},
		{"media/path", "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/media/path/*"`},
		{"a*b?c$d", "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/a${*}b${?}c${$}d/*"`},
		{"${aws:username}", "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/${$}{aws:username}/*"`},
		{"画😀é", "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/\u753b\ud83d\ude00é/*"`},
		{`a"b`, "arn:aws:iam::1:role/R", `"arn:aws:s3:::alpha/a\"b/*"`},
		{"media", "arn:aws-cn:iam::1:role/R", `"arn:aws-cn:s3:::alpha/media/*"`},
	} {
		a := account
		a.Prefix, a.RoleARN = tc.prefix, tc.role
		got, err := bucket.SessionPolicy(a, false)
		if err != nil || !strings.Contains(got, tc.want) {
			t.Errorf("%q: %s, %v", tc.prefix, got, err)
		}
	}
}

func TestASessionPolicyTooLongIsRefused(t *testing.T) {
	t.Parallel()
	for prefix, fits := range map[string]bool{
		strings.Repeat("a", 1000): true, strings.Repeat("a", 2000): false,
		strings.Repeat("画", 200): true, strings.Repeat("画", 330): false, // six characters each
		"\xff": false,
	} {
		a := account
		a.Prefix = prefix
		_, err := bucket.SessionPolicy(a, true)
		if fits != (err == nil) || (err != nil && failure.Of(err).Class != failure.Integration) {
			t.Errorf("%d bytes: %v", len(prefix), err)
		}
	}
}

// literal undoes IAM's variables for its own special characters.
var literal = strings.NewReplacer("${*}", "*", "${?}", "?", "${$}", "$")

func TestTheSessionPolicyHoldsExactlyThePrefixInSTSsCharacters(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := account
		a.Prefix = rapid.StringOfN(rapid.RuneFrom([]rune(`az*?$\"/{}é画😀&<`)), 1, 60, -1).Draw(t, "prefix")
		text, err := bucket.SessionPolicy(a, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range text {
			if r < 0x20 || r > 0xFF {
				t.Fatalf("%q in %s", r, text)
			}
		}
		if n := utf8.RuneCountInString(text); n > 2048 {
			t.Errorf("%d characters", n)
		}
		var p struct{ Statement []struct{ Resource string } }
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatal(err)
		}
		resource, ok := strings.CutSuffix(p.Statement[1].Resource, "*")
		bare := strings.NewReplacer("${*}", "", "${?}", "", "${$}", "").Replace(resource)
		if !ok || strings.ContainsAny(bare, "*?$") {
			t.Errorf("a wildcard in %q", resource)
		}
		if want := "arn:aws:s3:::alpha/" + bucket.KeyPrefix(a.Prefix, ""); literal.Replace(resource) != want {
			t.Errorf("%q, want %q", literal.Replace(resource), want)
		}
	})
}
