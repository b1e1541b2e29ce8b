package awslocal

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// policy is an IAM policy document, parsed and checked.
type policy struct {
	statements []statement
}

type statement struct {
	deny bool
	// actions and resources match unless their not- twin is set.
	actions      []pattern
	notActions   bool
	resources    []resourcePattern
	notResources bool
	principals   []string // of a bucket policy: "*", account IDs or ARNs
	conditions   []condition
}

// policyKind tells which documents need a Principal.
type policyKind int

const (
	identityPolicy policyKind = iota
	resourcePolicy
)

// access is one thing that a call wants to do.
type access struct {
	action   string
	resource string
	// account owns the resource.
	account string
	// context holds condition keys in lower case; an absent key is "null".
	context map[string]string
	// policy is the resource's own, nil where it has none.
	policy *policy
}

// verdict is what a policy says of an access.
type verdict int

const (
	silent verdict = iota
	allows
	denies
)

type rawStatement struct {
	Sid          string
	Effect       string
	Principal    json.RawMessage
	Action       stringList
	NotAction    stringList
	Resource     stringList
	NotResource  stringList
	Condition    map[string]map[string]stringList
	NotPrincipal json.RawMessage
}

// stringList is IAM's "one string or a list of them"; booleans count too.
type stringList []string

func (l *stringList) UnmarshalJSON(data []byte) error {
	var many []any
	var one any
	if err := json.Unmarshal(data, &one); err != nil {
		return err
	}
	many, ok := one.([]any)
	if !ok {
		many = []any{one}
	}
	*l = make(stringList, 0, len(many))
	for _, item := range many {
		switch value := item.(type) {
		case string:
			*l = append(*l, value)
		case bool:
			*l = append(*l, fmt.Sprint(value))
		default:
			return fmt.Errorf("%v is not a string", item)
		}
	}
	return nil
}

func parsePolicy(text string, kind policyKind) (*policy, error) {
	var doc struct {
		Version   string
		ID        string `json:"Id"`
		Statement json.RawMessage
	}
	if err := decodeStrictly([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("not a policy document: %w", err)
	}
	switch doc.Version {
	case "", "2008-10-17", "2012-10-17":
	default:
		return nil, fmt.Errorf("the policy's Version %q is not one of IAM's", doc.Version)
	}
	list := doc.Statement
	if trimmed := strings.TrimSpace(string(list)); strings.HasPrefix(trimmed, "{") {
		list = json.RawMessage("[" + trimmed + "]")
	}
	var raw []rawStatement
	if err := decodeStrictly(list, &raw); err != nil {
		return nil, fmt.Errorf("the policy's Statement: %w", err)
	}
	if len(raw) == 0 {
		return nil, errors.New("the policy has no Statement")
	}
	parsed := &policy{}
	for i, from := range raw {
		// Variables, and so ${*}, mean something only in the newer version.
		to, err := from.parse(kind, doc.Version == "2012-10-17")
		if err != nil {
			return nil, fmt.Errorf("statement %d of the policy: %w", i+1, err)
		}
		parsed.statements = append(parsed.statements, to)
	}
	return parsed, nil
}

func decodeStrictly(data []byte, into any) error {
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("text after the document")
	}
	return nil
}

func (raw *rawStatement) parse(kind policyKind, variables bool) (statement, error) {
	var st statement
	switch raw.Effect {
	case "Allow":
	case "Deny":
		st.deny = true
	default:
		return st, fmt.Errorf("effect %q", raw.Effect)
	}
	if (len(raw.Action) == 0) == (len(raw.NotAction) == 0) {
		return st, errors.New("it needs either Action or NotAction")
	}
	if (len(raw.Resource) == 0) == (len(raw.NotResource) == 0) {
		return st, errors.New("it needs either Resource or NotResource")
	}
	st.notActions = len(raw.NotAction) > 0
	for _, action := range slices.Concat(raw.Action, raw.NotAction) {
		if action != "*" && !strings.Contains(action, ":") {
			return st, fmt.Errorf("action %q lacks its service", action)
		}
		st.actions = append(st.actions, compile(strings.ToLower(action), false))
	}
	st.notResources = len(raw.NotResource) > 0
	for _, resource := range slices.Concat(raw.Resource, raw.NotResource) {
		compiled, err := compileResource(resource, variables)
		if err != nil {
			return st, err
		}
		st.resources = append(st.resources, compiled)
	}
	if raw.NotPrincipal != nil {
		return st, errors.New("NotPrincipal is not supported by this stand-in")
	}
	var err error
	if st.principals, err = parsePrincipals(raw.Principal, kind); err != nil {
		return st, err
	}
	st.conditions, err = parseConditions(raw.Condition, variables)
	return st, err
}

func parsePrincipals(raw json.RawMessage, kind policyKind) ([]string, error) {
	if kind == identityPolicy {
		if raw != nil {
			return nil, errors.New("an identity policy has no Principal")
		}
		return nil, nil
	}
	var everyone string
	if json.Unmarshal(raw, &everyone) == nil && everyone == "*" {
		return []string{"*"}, nil
	}
	var named map[string]stringList
	if err := json.Unmarshal(raw, &named); err != nil {
		return nil, errors.New("a bucket policy's statement needs a Principal")
	}
	// A service's principal (CloudFront's) is nobody who calls us.
	return named["AWS"], nil
}

// evaluate answers for the policy alone. An explicit denial wins.
func (p *policy) evaluate(a access, who *principal) verdict {
	answer := silent
	for i := range p.statements {
		st := &p.statements[i]
		if !st.applies(a, who) {
			continue
		}
		if st.deny {
			return denies
		}
		answer = allows
	}
	return answer
}

// applies leaves the principal unlooked at when who is nil.
func (st *statement) applies(a access, who *principal) bool {
	action := strings.ToLower(a.action)
	matchesAction := slices.ContainsFunc(st.actions, func(p pattern) bool { return p.match(action) })
	matchesResource := slices.ContainsFunc(st.resources, func(p resourcePattern) bool { return p.match(a.resource, a.context) })
	if matchesAction == st.notActions || matchesResource == st.notResources {
		return false
	}
	if who != nil && !slices.ContainsFunc(st.principals, who.answersTo) {
		return false
	}
	return !slices.ContainsFunc(st.conditions, func(c condition) bool { return !c.holds(a.context) })
}

// answersTo tells whether the principal is meant by a name in a trust or
// bucket policy.
func (p *principal) answersTo(name string) bool {
	switch name {
	case "*":
		return true
	case p.arn, p.roleARN, p.account, "arn:aws:iam::" + p.account + ":root":
		return name != ""
	}
	return false
}
