package awslocal

import (
	"encoding/xml"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	cloudFrontNamespace = "http://cloudfront.amazonaws.com/doc/2020-05-31/"
	cloudFrontVersion   = "2020-05-31"

	// CloudFront's quotas of what one distribution may have in progress.
	maxExactInProgress    = 3000
	maxWildcardInProgress = 15
	maxPathLength         = 4000
)

// cdn holds the distributions.
type cdn struct {
	mu            sync.Mutex
	distributions map[string]*distribution
	lastCall      map[string]time.Time // of CreateInvalidation, by account
}

type distribution struct {
	id, account   string
	invalidations []*Invalidation
}

// Invalidation is one purge of a distribution.
type Invalidation struct {
	ID, CallerReference string
	Paths               []string
	Created             time.Time
	Completed           bool
}

func distributionARN(account, id string) string {
	return "arn:aws:cloudfront::" + account + ":distribution/" + id
}

// AddDistribution makes a distribution, or one of that ID anew.
func (s *Server) AddDistribution(id, account string) {
	s.cdn.mu.Lock()
	defer s.cdn.mu.Unlock()
	s.cdn.distributions[id] = &distribution{id: id, account: account}
}

// Invalidations lists those of a distribution, oldest first.
func (s *Server) Invalidations(id string) []Invalidation {
	s.cdn.mu.Lock()
	defer s.cdn.mu.Unlock()
	d := s.cdn.distributions[id]
	if d == nil {
		return nil
	}
	s.progress(d)
	var listed []Invalidation
	for _, one := range d.invalidations {
		listed = append(listed, *one)
	}
	return listed
}

// CompleteInvalidations ends all of a distribution that are in progress.
func (s *Server) CompleteInvalidations(id string) {
	s.cdn.mu.Lock()
	defer s.cdn.mu.Unlock()
	if d := s.cdn.distributions[id]; d != nil {
		for _, one := range d.invalidations {
			one.Completed = true
		}
	}
}

// progress completes what is due. The caller holds the lock.
func (s *Server) progress(d *distribution) {
	if s.config.InvalidationTime < 0 {
		return
	}
	due := s.now().Add(-s.config.InvalidationTime)
	for _, one := range d.invalidations {
		one.Completed = one.Completed || !one.Created.After(due)
	}
}

var (
	createInvalidation = operation{"cloudfront:CreateInvalidation", permitDistribution("cloudfront:CreateInvalidation"), runCreateInvalidation}
	getInvalidation    = operation{"cloudfront:GetInvalidation", permitDistribution("cloudfront:GetInvalidation"), runGetInvalidation}
	listInvalidations  = operation{"cloudfront:ListInvalidations", permitDistribution("cloudfront:ListInvalidations"),
		func(*Server, *call) (*response, error) { return nil, notImplemented("ListInvalidations") }}
)

func routeCloudFront(c *call) (*operation, error) {
	parts := strings.Split(strings.TrimPrefix(c.r.URL.Path, "/"), "/")
	if len(parts) < 4 || parts[0] != cloudFrontVersion || parts[1] != "distribution" || parts[3] != "invalidation" {
		return nil, notImplemented(c.r.Method + " " + c.r.URL.Path)
	}
	c.Distribution = parts[2]
	switch {
	case len(parts) == 4 && c.r.Method == http.MethodPost:
		return &createInvalidation, nil
	case len(parts) == 4 && c.r.Method == http.MethodGet:
		return &listInvalidations, nil
	case len(parts) == 5 && c.r.Method == http.MethodGet:
		return &getInvalidation, nil
	}
	return nil, methodNotAllowed()
}

// permitDistribution asks the caller's policy before it tells whether the
// distribution exists; one of another account is none to the caller.
func permitDistribution(action string) func(*Server, *call) error {
	return func(s *Server, c *call) error {
		if c.region != "us-east-1" {
			return refuse(http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to a valid region.")
		}
		account := c.caller.account
		if err := c.authorizeAll(access{action: action, resource: distributionARN(account, c.Distribution), account: account}); err != nil {
			return err
		}
		s.cdn.mu.Lock()
		defer s.cdn.mu.Unlock()
		if d := s.cdn.distributions[c.Distribution]; d == nil || d.account != account {
			return fail(http.StatusNotFound, "NoSuchDistribution", "The specified distribution does not exist.")
		}
		return nil
	}
}

type xmlBatch struct {
	Quantity        int      `xml:"Paths>Quantity"`
	Items           []string `xml:"Paths>Items>Path"`
	CallerReference string
}

type xmlInvalidation struct {
	XMLName           xml.Name `xml:"Invalidation"`
	Namespace         string   `xml:"xmlns,attr"`
	ID                string   `xml:"Id"`
	Status            string
	CreateTime        string
	InvalidationBatch xmlBatch
}

func (i *Invalidation) response(status int, d *distribution) *response {
	state := "InProgress"
	if i.Completed {
		state = "Completed"
	}
	res := xmlResponse(status, xmlInvalidation{
		Namespace: cloudFrontNamespace, ID: i.ID, Status: state, CreateTime: i.Created.Format(time.RFC3339),
		InvalidationBatch: xmlBatch{len(i.Paths), i.Paths, i.CallerReference},
	})
	res.header.Set("Location", "https://cloudfront.amazonaws.com/"+cloudFrontVersion+"/distribution/"+d.id+"/invalidation/"+i.ID)
	return res
}

func runCreateInvalidation(s *Server, c *call) (*response, error) {
	var batch struct {
		XMLName xml.Name `xml:"InvalidationBatch"`
		xmlBatch
	}
	if len(c.body.bytes()) == 0 {
		return nil, fail(http.StatusBadRequest, "MissingBody", "This operation requires a body.")
	}
	if err := xml.Unmarshal(c.body.bytes(), &batch); err != nil {
		return nil, fail(http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed.")
	}
	s.cdn.mu.Lock()
	defer s.cdn.mu.Unlock()
	d := s.cdn.distributions[c.Distribution]
	s.progress(d)
	if err := s.throttle(d.account); err != nil {
		return nil, err
	}
	if err := checkBatch(batch.xmlBatch); err != nil {
		return nil, err
	}
	for _, one := range d.invalidations {
		if one.CallerReference != batch.CallerReference {
			continue
		}
		if !slices.Equal(one.Paths, batch.Items) {
			return nil, fail(http.StatusBadRequest, "InvalidationBatchAlreadyExists", "An invalidation batch with this caller reference and other paths exists.")
		}
		return one.response(http.StatusCreated, d), nil
	}
	if err := d.checkQuota(batch.Items); err != nil {
		return nil, err
	}
	created := &Invalidation{ID: "I" + newID(13), CallerReference: batch.CallerReference, Paths: batch.Items, Created: s.now()}
	d.invalidations = append(d.invalidations, created)
	return created.response(http.StatusCreated, d), nil
}

// throttle allows one call an interval and account. The caller holds the lock.
func (s *Server) throttle(account string) error {
	now := s.now()
	last, called := s.cdn.lastCall[account]
	if called && now.Sub(last) < s.config.InvalidationInterval {
		return fail(http.StatusBadRequest, "Throttling", "Rate exceeded")
	}
	s.cdn.lastCall[account] = now
	return nil
}

func checkBatch(batch xmlBatch) error {
	if batch.CallerReference == "" || len(batch.Items) == 0 {
		return invalidArgument("The parameter CallerReference or Paths is missing.")
	}
	if batch.Quantity != len(batch.Items) {
		return fail(http.StatusBadRequest, "InconsistentQuantities", "The value of Quantity and the size of Items don't match.")
	}
	if len(batch.Items) > maxExactInProgress {
		return fail(http.StatusRequestEntityTooLarge, "BatchTooLarge", "Invalidation batch specified is too large.")
	}
	for _, path := range batch.Items {
		if reason := badPath(path); reason != "" {
			return invalidArgument("Your request contains one or more invalid invalidation paths: a path %s.", reason)
		}
	}
	return nil
}

// badPath tells what CloudFront refuses of a path, empty when it is good.
func badPath(path string) string {
	switch star := strings.IndexByte(path, '*'); {
	case !strings.HasPrefix(path, "/"):
		return "does not begin with /"
	case len(path) > maxPathLength:
		return "is longer than 4,000 characters"
	case star >= 0 && star != len(path)-1:
		return "has a * that is not its last character"
	case strings.ContainsFunc(path, func(ch rune) bool { return ch <= ' ' || ch > '~'-1 }):
		return "holds a character that must be percent-encoded"
	}
	return ""
}

// checkQuota counts exact paths and wildcards apart, as CloudFront does.
func (d *distribution) checkQuota(paths []string) error {
	exact, wildcards := countPaths(paths)
	for _, one := range d.invalidations {
		if !one.Completed {
			e, w := countPaths(one.Paths)
			exact, wildcards = exact+e, wildcards+w
		}
	}
	if exact > maxExactInProgress || wildcards > maxWildcardInProgress {
		return fail(http.StatusBadRequest, "TooManyInvalidationsInProgress", "Processing your request will cause you to exceed the maximum number of in-progress wildcard or object invalidations.")
	}
	return nil
}

func countPaths(paths []string) (exact, wildcards int) {
	for _, path := range paths {
		if strings.HasSuffix(path, "*") {
			wildcards++
		} else {
			exact++
		}
	}
	return exact, wildcards
}

func runGetInvalidation(s *Server, c *call) (*response, error) {
	id := c.r.URL.Path[strings.LastIndex(c.r.URL.Path, "/")+1:]
	s.cdn.mu.Lock()
	defer s.cdn.mu.Unlock()
	d := s.cdn.distributions[c.Distribution]
	s.progress(d)
	for _, one := range d.invalidations {
		if one.ID == id {
			return one.response(http.StatusOK, d), nil
		}
	}
	return nil, fail(http.StatusNotFound, "NoSuchInvalidation", "The specified invalidation does not exist.")
}
