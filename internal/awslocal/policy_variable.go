package awslocal

import (
	"regexp"
	"slices"
	"strings"
)

// variable is a policy variable: the value of a condition key of the request, or
// the default where the request has no such key (IAM user guide, "IAM policy
// elements: Variables and tags"). The zero value stands for one that can't be read.
type variable struct {
	key string // in lower case
	// fallback is nil where there is no default.
	fallback *string
}

// inBraces is what may stand between ${ and }: a key, and a default in quotes.
var inBraces = regexp.MustCompile(`^\$\{([^\s',{}]+)(?:, '([^']*)')?\}`)

// readVariable reads the variable that a text begins with, after "${", and tells
// how many bytes it has. One that can't be read takes the whole text.
func readVariable(text string) (token, int) {
	for _, literal := range []string{"${*}", "${?}", "${$}"} {
		if strings.HasPrefix(text, literal) {
			return token{char: rune(literal[2])}, len(literal)
		}
	}
	at := inBraces.FindStringSubmatchIndex(text)
	if at == nil {
		return token{variable: &variable{}}, len(text)
	}
	read := &variable{key: strings.ToLower(text[at[2]:at[3]])}
	if at[4] >= 0 {
		fallback := text[at[4]:at[5]]
		read.fallback = &fallback
	}
	return token{variable: read}, at[1]
}

// in puts the values of a request in the place of variables; no character of them
// is wild. It fails where one has no value: the pattern then matches nothing.
func (p pattern) in(context map[string]string) (pattern, bool) {
	isVariable := func(t token) bool { return t.variable != nil }
	if !slices.ContainsFunc(p, isVariable) {
		return p, true
	}
	var filled pattern
	for _, t := range p {
		if !isVariable(t) {
			filled = append(filled, t)
			continue
		}
		value, ok := context[t.variable.key]
		if !ok {
			if t.variable.fallback == nil {
				return nil, false
			}
			value = *t.variable.fallback
		}
		for _, char := range value {
			filled = append(filled, token{char: char})
		}
	}
	return filled, true
}

// text is the pattern's characters, wild ones among them.
func (p pattern) text() string {
	var text strings.Builder
	for _, t := range p {
		text.WriteRune(t.char)
	}
	return text.String()
}
