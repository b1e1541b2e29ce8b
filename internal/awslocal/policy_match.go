package awslocal

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// pattern is text in which * and ? are wild; escaped ones are not.
type pattern []token

// token is a character or, until it has a value, a variable.
type token struct {
	char     rune
	wild     bool
	variable *variable
}

// compile reads a pattern. With variables, ${*}, ${?} and ${$} stand for the
// character itself, and other variables for what pattern.in puts in their place.
func compile(text string, variables bool) pattern {
	compiled := make(pattern, 0, len(text))
	for text != "" {
		if variables && strings.HasPrefix(text, "${") {
			read, length := readVariable(text)
			compiled = append(compiled, read)
			text = text[length:]
			continue
		}
		char, length := utf8.DecodeRuneInString(text)
		compiled = append(compiled, token{char: char, wild: char == '*' || char == '?'})
		text = text[length:]
	}
	return compiled
}

// match walks the text once, going back only to the last * seen. The pattern has
// no variables any more.
func (p pattern) match(text string) bool {
	runes := []rune(text)
	at, star, mark := 0, -1, 0
	for i := 0; i < len(runes); {
		switch {
		case at < len(p) && p[at].wild && p[at].char == '*':
			star, mark = at, i
			at++
		case at < len(p) && (p[at].wild || p[at].char == runes[i]):
			at++
			i++
		case star >= 0:
			mark++
			at, i = star+1, mark
		default:
			return false
		}
	}
	for at < len(p) && p[at].wild && p[at].char == '*' {
		at++
	}
	return at == len(p)
}

// resourcePattern is an ARN whose six parts are matched one by one; nil
// matches everything.
type resourcePattern []pattern

func compileResource(text string, variables bool) (resourcePattern, error) {
	if text == "*" {
		return nil, nil
	}
	parts := strings.SplitN(text, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" {
		return nil, fmt.Errorf("resource %q is not an ARN", text)
	}
	compiled := make(resourcePattern, len(parts))
	for i, part := range parts {
		// Variables are read only after the fifth colon.
		compiled[i] = compile(part, variables && i == 5)
	}
	return compiled, nil
}

func (p resourcePattern) match(arn string, context map[string]string) bool {
	if p == nil {
		return true
	}
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != len(p) {
		return false
	}
	for i, part := range parts {
		if filled, ok := p[i].in(context); !ok || !filled.match(part) {
			return false
		}
	}
	return true
}

// condition is one operator with one key of a statement's Condition.
type condition struct {
	key      string // in lower case
	values   []pattern
	operator operator
	ifExists bool
}

// operator tells whether a present value meets one of the condition's.
type operator struct {
	holds   func(want pattern, value string) bool
	negated bool
}

func equals(want pattern, value string) bool { return want.text() == value }

func equalsFold(want pattern, value string) bool { return strings.EqualFold(want.text(), value) }

var operators = map[string]operator{
	"StringEquals":              {equals, false},
	"StringNotEquals":           {equals, true},
	"StringEqualsIgnoreCase":    {equalsFold, false},
	"StringNotEqualsIgnoreCase": {equalsFold, true},
	"StringLike":                {pattern.match, false},
	"StringNotLike":             {pattern.match, true},
	"ArnEquals":                 {pattern.match, false},
	"ArnLike":                   {pattern.match, false},
	"ArnNotEquals":              {pattern.match, true},
	"ArnNotLike":                {pattern.match, true},
	"Bool":                      {equalsFold, false},
	// Null is about presence alone; see holds.
	"Null": {},
}

func parseConditions(raw map[string]map[string]stringList, variables bool) ([]condition, error) {
	var parsed []condition
	for name, keys := range raw {
		base, ifExists := strings.CutSuffix(name, "IfExists")
		op, ok := operators[base]
		if !ok {
			return nil, fmt.Errorf("condition operator %q is not supported by this stand-in", name)
		}
		for key, values := range keys {
			c := condition{key: strings.ToLower(key), operator: op, ifExists: ifExists}
			for _, value := range values {
				c.values = append(c.values, compile(value, variables))
			}
			parsed = append(parsed, c)
		}
	}
	return parsed, nil
}

func (c *condition) holds(context map[string]string) bool {
	value, present := context[c.key]
	if c.operator.holds == nil {
		return slices.ContainsFunc(c.values, func(want pattern) bool { return equalsFold(want, fmt.Sprint(!present)) })
	}
	if !present {
		// A negated operator is true of an absent key.
		return c.ifExists || c.operator.negated
	}
	met := slices.ContainsFunc(c.values, func(want pattern) bool {
		filled, ok := want.in(context)
		return ok && c.operator.holds(filled, value)
	})
	return met != c.operator.negated
}
