package awslocal

import (
	"fmt"
	"slices"
	"strings"
)

// pattern is text in which * and ? are wild; escaped ones are not.
type pattern []token

type token struct {
	char rune
	wild bool
}

// compile reads a pattern. With variables, ${*}, ${?} and ${$} stand for the
// character itself (IAM user guide, policy variables); any other variable
// stands for nothing that a value could hold.
func compile(text string, variables bool) pattern {
	compiled := make(pattern, 0, len(text))
	runes := []rune(text)
	for i := 0; i < len(runes); i++ {
		if variables && runes[i] == '$' && i+3 < len(runes) && runes[i+1] == '{' && runes[i+3] == '}' {
			compiled = append(compiled, token{char: runes[i+2]})
			i += 3
			continue
		}
		compiled = append(compiled, token{runes[i], runes[i] == '*' || runes[i] == '?'})
	}
	return compiled
}

// match walks the text once, going back only to the last * seen.
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

func (p resourcePattern) match(arn string) bool {
	if p == nil {
		return true
	}
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != len(p) {
		return false
	}
	for i, part := range parts {
		if !p[i].match(part) {
			return false
		}
	}
	return true
}

// condition is one operator with one key of a statement's Condition.
type condition struct {
	key      string // in lower case
	values   []string
	patterns []pattern
	operator operator
	ifExists bool
}

// operator tells whether a present value meets the condition.
type operator struct {
	holds   func(c *condition, value string) bool
	negated bool
}

func equalsAny(c *condition, value string) bool { return slices.Contains(c.values, value) }

func equalsAnyFold(c *condition, value string) bool {
	return slices.ContainsFunc(c.values, func(v string) bool { return strings.EqualFold(v, value) })
}

func likeAny(c *condition, value string) bool {
	return slices.ContainsFunc(c.patterns, func(p pattern) bool { return p.match(value) })
}

var operators = map[string]operator{
	"StringEquals":              {equalsAny, false},
	"StringNotEquals":           {equalsAny, true},
	"StringEqualsIgnoreCase":    {equalsAnyFold, false},
	"StringNotEqualsIgnoreCase": {equalsAnyFold, true},
	"StringLike":                {likeAny, false},
	"StringNotLike":             {likeAny, true},
	"ArnEquals":                 {likeAny, false},
	"ArnLike":                   {likeAny, false},
	"ArnNotEquals":              {likeAny, true},
	"ArnNotLike":                {likeAny, true},
	"Bool":                      {equalsAnyFold, false},
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
			c := condition{key: strings.ToLower(key), values: values, operator: op, ifExists: ifExists}
			for _, value := range values {
				c.patterns = append(c.patterns, compile(value, variables))
			}
			parsed = append(parsed, c)
		}
	}
	return parsed, nil
}

func (c *condition) holds(context map[string]string) bool {
	value, present := context[c.key]
	if c.operator.holds == nil {
		return equalsAnyFold(c, fmt.Sprint(!present))
	}
	if !present {
		// A negated operator is true of an absent key.
		return c.ifExists || c.operator.negated
	}
	return c.operator.holds(c, value) != c.operator.negated
}
