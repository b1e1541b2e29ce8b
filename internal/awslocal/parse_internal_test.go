package awslocal

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPatternMatchesAsItsRegularExpressionWould(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune("ab/?*é")), 0, 8, -1).Draw(t, "pattern")
		value := rapid.StringOfN(rapid.RuneFrom([]rune("ab/*é")), 0, 10, -1).Draw(t, "value")
		same := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(text))
		want := regexp.MustCompile("(?s)^" + same + "$").MatchString(value)
		if got := compile(text, false).match(value); got != want {
			t.Fatalf("%q matches %q: %v, want %v", text, value, got, want)
		}
	})
}

func TestChunkedBodyIsDecodedAsItWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunks := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 1, 100)).Draw(t, "chunks")
		var encoded, want bytes.Buffer
		for _, chunk := range chunks {
			fmt.Fprintf(&encoded, "%x\r\n%s\r\n", len(chunk), chunk)
			want.Write(chunk)
		}
		encoded.WriteString("0\r\nx-amz-checksum-crc32: sum\r\n\r\n")
		whole := bytes.Clone(encoded.Bytes())
		reader := newChunkReader(&encoded)
		got, err := io.ReadAll(reader)
		if err != nil || !bytes.Equal(got, want.Bytes()) || reader.trailers.Get("X-Amz-Checksum-Crc32") != "sum" {
			t.Fatalf("%v: %q with %v, want %q", err, got, reader.trailers, want.Bytes())
		}
		cut := rapid.IntRange(0, len(whole)-1).Draw(t, "cut")
		if _, err := io.ReadAll(newChunkReader(bytes.NewReader(whole[:cut]))); err == nil {
			t.Fatalf("a body cut after %d of %d bytes is taken", cut, len(whole))
		}
	})
}

func FuzzChunkReader(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\nx:y\r\n\r\n"))
	f.Add([]byte("ffffffffffffffff\r\n"))
	f.Fuzz(func(t *testing.T, encoded []byte) {
		got, _ := io.ReadAll(newChunkReader(bytes.NewReader(encoded)))
		if len(got) > len(encoded) {
			t.Errorf("%d bytes out of %d", len(got), len(encoded))
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	f.Add(CustomerPolicy("bucket", "media"))
	f.Add(PublicBucketPolicy("bucket", ""))
	f.Add(`{"Statement":{"Effect":"Deny","NotAction":["s3:*"],"NotResource":"*","Condition":{"StringNotLikeIfExists":{"s3:prefix":["a","b"]}}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []policyKind{identityPolicy, resourcePolicy} {
			parsed, err := parsePolicy(text, kind)
			if err != nil {
				continue
			}
			parsed.evaluate(access{action: "s3:PutObject", resource: objectARN("bucket", "key")}, &anonymous)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=00")
	f.Fuzz(func(t *testing.T, authorization string) {
		r := &http.Request{Header: http.Header{"Authorization": {authorization}, "X-Amz-Date": {"20260101T000000Z"}}}
		sig, err := parseSignature(r)
		if err == nil && (sig.service == "" && !strings.Contains(authorization, "//") || sig.date != "20260101") {
			t.Errorf("%q is read as %+v", authorization, sig)
		}
	})
}
