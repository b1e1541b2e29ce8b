package secret_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/secret"
)

func TestHideKnowsURLsOfEveryKind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"https://cms.example/a.txt", "https://cms.example/a.txt"},
		{"https://cms.example/a.txt?", "https://cms.example/a.txt?"},
		{"https://cms.example:8443/a.txt", "https://cms.example:8443/a.txt"},
		{"https://cms.example/a@2x.png", "https://cms.example/a@2x.png"},
		{"https://[2001:db8::1]:443/a.txt", "https://[2001:db8::1]:443/a.txt"},
		{"s3://staging/media/a@2x.png", "s3://staging/media/a@2x.png"},
		{"file:media/a@2x.png", "file:media/a@2x.png"},
		{"file:100%.txt", "file:100%.txt"},
		{"image/png; charset=utf-8", "image/png; charset=utf-8"},
		{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"},
		{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		{"画像 🎉", "画像 🎉"},

		{"HTTPS://cms.example/a.txt?t=secret", "HTTPS://cms.example/a.txt?REDACTED"},
		{" https://cms.example/a.txt?t=secret", " https://cms.example/a.txt?REDACTED"},
		{"https://cms.example/%zz?t=secret", "https://cms.example/%zz?REDACTED"},
		{"https://cms.example/a.txt#access_token=secret", "https://cms.example/a.txt#REDACTED"},
		{"s3://staging/a.txt?X-Amz-Signature=secret", "s3://staging/a.txt?REDACTED"},
		{"s3://AKIA:secret@staging/a.txt", "s3://REDACTED@staging/a.txt"},
		{"file:a.txt?token=secret", "file:a.txt?REDACTED"},
		{"file://user:secret@host/a", "file://REDACTED@host/a"},
		{"//cms.example/a.txt?sig=secret", "//cms.example/a.txt?REDACTED"},
		{`\\user:secret@cms.example\a.txt`, `\\REDACTED@cms.example\a.txt`},
		{"/a.txt?secret", "/a.txt?REDACTED"},
		{"?secret", "?REDACTED"},
		{"wss://secret@cms.example", "wss://REDACTED@cms.example"},
		{"redis://:secret@cms.example/0", "redis://REDACTED@cms.example/0"},
		{"jdbc:postgresql://cms.example/db?password=secret", "jdbc:postgresql://cms.example/db?REDACTED"},
		{"user:secret@cms.example:path", "REDACTED@cms.example:path"},
		{"https:user:secret@cms.example", "REDACTED@cms.example"},
		{"https:/secret@cms.example/a", "https:/REDACTED@cms.example/a"},
		{"ftp://user:secret/secret@cms.example/a", "ftp://REDACTED@cms.example/a"},
		{"ftp://user:secret@secret@cms.example/a", "ftp://REDACTED@cms.example/a"},
		{"ftp://user:secret?secret@cms.example/a", "ftp://?REDACTED"},
		{"https://cms.example/a?m=1:2@b&sig=secret", "https://cms.example/?REDACTED"},
		{"https://cms.example/a%3Fm=1:2@b&sig=secret", "https://cms.example/?REDACTED"},
		{"ftp://user:/secret/secret@cms.example/a", "ftp://REDACTED@cms.example/a"},
		{"ftp://user:1/secret@cms.example/a", "ftp://REDACTED@cms.example/a"},
		{"see ftp://a/b, https://user:secret@c/d", "see ftp://a/b, https://REDACTED@c/d"},

		{"https%3a%2f%2fcms.example%2Fa.txt%3Ft%3Dsecret", "https://cms.example/a.txt?REDACTED"},
		{"https%253A%252F%252Fuser%253Asecret%2540cms.example", "https://REDACTED@cms.example"},
		{"https://proxy.example/https%3A%2F%2Fuser%3Asecret%40cms.example%2Fa", "https://proxy.example/https://REDACTED@cms.example/a"},
		{"https://a:secret@proxy.example/https%3A%2F%2Fb%3Asecret%40c", "https://REDACTED@proxy.example/https://REDACTED@c"},
		{`https:\/\/cms.example\/a.txt\u003ft=secret`, "https://cms.example/a.txt?REDACTED"},
		{"https://cms.example/a.txt&quest;t=secret", "https://cms.example/a.txt?REDACTED"},
		{"https://cms.example/a.txt%u003Ft=secret", "https://cms.example/a.txt?REDACTED"},
		{`{"a":["//b?secret"],"c":1.0}`, `{"a":["//b?REDACTED"],"c":1.0}`},
		{`{"a":["//b?secret"`, `{"a":["//b?REDACTED`},
		{"a%25%253F", "a%25%253F"},
		{"a%" + strings.Repeat("25", 20) + "3Fsecret", "(not shown: it can't be looked through for secrets)"},
	} {
		if got := secret.Hide(c.text); got != c.want {
			t.Errorf("%s is shown as\n%s, want\n%s", c.text, got, c.want)
		}
	}
}

func TestHideInJSONKeepsWhatIsNoSecret(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ document, want string }{
		{`{"b":1.0, "a":[1e2,null,"<&>\u0041"]}`, `{"b":1.0, "a":[1e2,null,"<&>\u0041"]}`},
		{`{"file_name":"Who? #1 a@b:c.png","from":"?a","to" : "#b","previous_file_name":"x:y@z","media_id":"m?1"}`,
			`{"file_name":"Who? #1 a@b:c.png","from":"?a","to" : "#b","previous_file_name":"x:y@z","media_id":"m?1"}`},
		{`{"file_name":"//a?secret","from":"a%2Fb?secret","to":["?secret"],"note":"?secret"}`,
			`{"file_name":"//a?REDACTED","from":"a/b?REDACTED","to":["?REDACTED"],"note":"?REDACTED"}`},
		{`["from","?secret"]`, `["from","?REDACTED"]`},
		{`"{\"file_name\":\"a?b\",\"x\":\"a?secret\"}"`, `"{\"file_name\":\"a?b\",\"x\":\"a?REDACTED\"}"`},
		{`no JSON: ftp://a:secret@b`, `"REDACTED@b"`},
	} {
		if got := string(secret.HideInJSON([]byte(c.document))); got != c.want {
			t.Errorf("%s is shown as\n%s, want\n%s", c.document, got, c.want)
		}
	}
}

// escapings are the ways in which a URL may be wrapped once more.
var escapings = []func(string) string{
	url.QueryEscape, url.PathEscape, html.EscapeString,
	func(text string) string { return "https://proxy.example/fetch/" + url.PathEscape(text) },
	func(text string) string { return "see " + text },
	func(text string) string {
		var escaped strings.Builder
		for _, r := range text {
			fmt.Fprintf(&escaped, `\u%04x`, r)
		}
		return escaped.String()
	},
	func(text string) string { return string(mustJSON([]string{text})) },
	func(text string) string {
		return string(mustJSON(map[string]any{"from": text, "x": map[string]string{text: text}}))
	},
}

func mustJSON(value any) []byte {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return encoded
}

func TestNoSecretOfAURLIsShownHoweverItIsWrapped(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const password = "s3cr3tS3CR3T"
		scheme := rapid.SampledFrom([]string{"https:", "HTTP:", "ftp:", "wss:", "s3:", "file:", "x+y.z-1:", ""}).Draw(t, "scheme")
		text := scheme + rapid.SampledFrom([]string{
			"//user:%s@h/x", "//%s@h", "//user:a%s/b@h/x", "//user:a?%s#@h/x", "//h/x?sig=%s", "//h/x#%s", "//h?%s", "//h/x?a@b#%s", "//h/x?m=1:2@b&sig=%s", "//h/x?//a@b&sig=%s", "//u:p@h/x?%s",
		}).Draw(t, "shape")
		text = strings.Replace(text, "%s", password, 1)
		for range rapid.IntRange(0, 4).Draw(t, "layers") {
			text = escapings[rapid.IntRange(0, len(escapings)-1).Draw(t, "escaping")](text)
		}
		document := mustJSON(map[string]any{rapid.SampledFrom([]string{"source", "file_name", "note"}).Draw(t, "field"): text})

		shown := secret.HideInJSON(document)
		if !json.Valid(shown) {
			t.Fatalf("%s is shown as %s, which is no JSON", document, shown)
		}
		plain := string(shown)
		for range 12 { // no reader looks through more layers than the URL has
			plain = decodeOnce(plain)
		}
		if strings.Contains(string(shown), password) || strings.Contains(plain, password) {
			t.Fatalf("%s is shown as %s", document, shown)
		}
		if again := secret.HideInJSON(shown); string(again) != string(shown) {
			t.Fatalf("%s is shown as %s, and that as %s", document, shown, again)
		}
	})
}

// decodeOnce undoes one layer of escapes wherever it can.
func decodeOnce(text string) string {
	text = html.UnescapeString(text)
	for i := 0; i+1 < len(text); i++ {
		switch {
		case text[i] == '%' && i+3 <= len(text):
			if decoded, err := url.PathUnescape(text[i : i+3]); err == nil {
				text = text[:i] + decoded + text[i+3:]
			}
		case text[i] == '\\' && text[i+1] == 'u' && i+6 <= len(text):
			var decoded string
			if json.Unmarshal([]byte(`"`+text[i:i+6]+`"`), &decoded) == nil {
				text = text[:i] + decoded + text[i+6:]
			}
		case text[i] == '\\':
			text = text[:i] + text[i+1:]
		}
	}
	return text
}

func FuzzHideInJSON(f *testing.F) {
	for _, seed := range []string{`{"source":"ftp://user:pw@h/x?y#z"}`, `["\ud800","{\"a\":\"%3F\"}"]`, `"\\u003f"`, `{"from":"a","to":"//b?c"}`, `x"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		shown := secret.HideInJSON(document)
		if !json.Valid(shown) {
			t.Fatalf("%s is no JSON", shown)
		}
		if json.Valid(document) {
			if again := secret.HideInJSON(shown); string(again) != string(shown) {
				t.Fatalf("%s, and again %s", shown, again)
			}
		}
		var text string
		if json.Unmarshal(shown, &text) == nil {
			if _, after, found := strings.Cut(text, "?"); found && after != "" && after != "REDACTED" && !json.Valid([]byte(text)) {
				t.Fatalf("%q shows a query", text)
			}
		}
	})
}
