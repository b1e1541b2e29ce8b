// Package secret keeps what must not be seen out of errors, logs and commands.
// Its texts were written by others, who may have put a secret anywhere.
package secret

import (
	"encoding/json"
	"html"
	"regexp"
	"strconv"
	"strings"
)

// hidden stands where something was taken out.
const hidden = "REDACTED"

// maxEscapings is how many layers of escapes are looked through. A text with more
// of them isn't shown.
const maxEscapings = 8

const unreadable = "(not shown: it can't be looked through for secrets)"

var (
	// userInfo begins behind two slashes, or behind a colon and one, and ends with
	// the last @ that may end it. Readers of URLs disagree about a password that
	// holds a slash or a backslash, so it ends behind them.
	userInfo = regexp.MustCompile(`(?s)([/\\]{2}|:[/\\])[^/\\]*(?::.*)?@`)
	// password is a user name and a password without slashes before them.
	password = regexp.MustCompile(`(?s)[^/\\:]*:[^/\\].*@`)
	// query is a query or a fragment.
	query = regexp.MustCompile(`(?s)([?#]).+`)
	// escape is one character in percent-encoding, JavaScript's or JSON's.
	escape = regexp.MustCompile(`(?i)%[0-9a-f]{2}|[%\\]u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[\\/"]`)
)

// Hide returns a text without what may be secret in a URL of any scheme, relative
// ones included: the user name, the password, the query and the fragment. It looks
// through escapes and into JSON. What it changes, it returns without the escapes.
//
// A path is shown, as a URL's host is. Of a text that isn't a URL, more may be
// hidden than there are secrets.
func Hide(text string) string { return hide(text, func(string) bool { return true }) }

// hideInName is Hide for file names and IDs, which may hold any of those
// characters: one without a slash is no URL.
func hideInName(name string) string {
	return hide(name, func(text string) bool { return strings.ContainsAny(text, `/\`) })
}

func hide(text string, isURL func(string) bool) string {
	if trimmed := strings.TrimSpace(text); strings.HasPrefix(trimmed, "{") || strings.HasPrefix(trimmed, "[") || strings.HasPrefix(trimmed, `"`) {
		if json.Valid([]byte(trimmed)) {
			return string(hideInStrings([]byte(text)))
		}
	}
	shown, found := text, false
	for range maxEscapings {
		if found = found || isURL(text); found {
			if safe := hidePlain(text); safe != text {
				shown, text = safe, safe
			}
		}
		plain := unescape(text)
		if plain == text {
			return shown
		}
		text = plain
	}
	return unreadable
}

func hidePlain(text string) string {
	// A path below the worker's file root may hold an @.
	path, isFile := strings.CutPrefix(text, "file:")
	path = userInfo.ReplaceAllStringFunc(path, func(found string) string { return found[:2] + withoutUser(found[2:]) })
	path = password.ReplaceAllStringFunc(path, withoutUser)
	path = query.ReplaceAllString(path, "${1}"+hidden)
	if isFile {
		return "file:" + path
	}
	return path
}

// withoutUser stands for what ends with an @. That may be part of a query, also of
// an escaped one: its rest is then hidden as one.
func withoutUser(found string) string {
	if strings.ContainsAny(found, `?#%&\`) {
		return "?" + hidden
	}
	return hidden + "@"
}

func unescape(text string) string {
	return html.UnescapeString(escape.ReplaceAllStringFunc(text, func(escaped string) string {
		code, err := strconv.ParseUint(strings.TrimLeft(escaped, `%\uUxX`), 16, 16)
		switch {
		case err != nil:
			return escaped[1:] // a backslash before a slash, a quote or another one
		case code <= 0xFF:
			return string([]byte{byte(code)})
		default:
			return string(rune(code))
		}
	}))
}

// jsonString is a string of a JSON document, or a field of an event that holds a
// name, with its name.
var jsonString = regexp.MustCompile(`(?s)(?:"(?:media_id|file_name|previous_file_name|from|to)"\s*:\s*())?"(?:[^"\\]|\\.)*"`)

// HideInJSON is [Hide] for all strings of a JSON document, names of fields
// included. File names and media IDs are hidden in only if they hold a slash. The
// result can be part of other JSON: a document that encoding/json can't read is
// given as a text.
func HideInJSON(document []byte) json.RawMessage {
	safe := hideInStrings(document)
	if json.Valid(safe) {
		return safe
	}
	// PostgreSQL takes what is nested more deeply than encoding/json reads.
	return literal(Hide(string(safe)))
}

func hideInStrings(document []byte) []byte {
	safe := make([]byte, 0, len(document))
	end := 0
	for _, at := range jsonString.FindAllSubmatchIndex(document, -1) {
		from, to, hideOne := at[0], at[1], Hide
		if at[2] >= 0 {
			from, hideOne = at[2], hideInName
		}
		safe = append(safe, document[end:from]...)
		safe = append(safe, hideInLiteral(document[from:to], hideOne)...)
		end = to
	}
	return append(safe, document[end:]...)
}

func hideInLiteral(quoted []byte, hideOne func(string) string) []byte {
	var text string
	if json.Unmarshal(quoted, &text) != nil {
		return literal(unreadable)
	}
	if safe := hideOne(text); safe != text {
		return literal(safe)
	}
	return quoted
}

func literal(text string) []byte {
	var quoted strings.Builder
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string always encodes
	return []byte(strings.TrimSuffix(quoted.String(), "\n"))
}
