// Package awslocal is a stand-in for S3, STS and CloudFront on loopback. It
// forgives nothing that AWS would refuse: signatures, session tokens, trust
// policies, external IDs, session policies, conditional writes and quotas are
// enforced, so that what passes here needs no more than a customer grants.
//
// Servers share nothing: any number of them run side by side in one process.
package awslocal

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Config sets up a Server. Its zero value works.
type Config struct {
	// Addr is where to listen; "127.0.0.1:0" when empty.
	Addr string
	// Dir holds the bytes of large objects. When empty, a temporary directory
	// is made and removed by Close.
	Dir string
	// OperatorAccount is the AWS account of the CMS: users added without an
	// account belong to it, and customers made by AddCustomer trust it.
	OperatorAccount string
	// TLS serves https with a certificate of the server's own; see CertPool.
	TLS bool
	// Now is the clock by which credentials expire, objects are dated and
	// invalidations complete; time.Now when nil. The skew of a signature is
	// judged by the real clock, since that is what clients sign with.
	Now func() time.Time
	// InvalidationTime is how long an invalidation stays in progress: one
	// second when zero; until CompleteInvalidations is called when negative.
	InvalidationTime time.Duration
	// InvalidationInterval is the least time between two CreateInvalidation
	// calls of one account; what comes sooner is throttled. Zero: no limit.
	InvalidationInterval time.Duration
	// LogSize bounds the request log and the list of refused calls, 10,000
	// entries each when zero; the oldest fall out.
	LogSize int
}

const defaultOperatorAccount = "999999999999"

// Server is one stand-in. Make it with Start.
type Server struct {
	config  Config
	dir     string
	ownsDir bool

	store   store
	iam     directory
	cdn     cdn
	faults  faultSet
	journal journal

	http     *http.Server
	endpoint string
	certPool *x509.CertPool

	// closing is cancelled first of all, so that calls held up by a fault end.
	closing context.Context
	close   context.CancelFunc
	served  chan struct{}
	once    sync.Once
	// running is held for reading by each call; Close takes it for good.
	running sync.RWMutex
}

// Start serves until Close.
func Start(config Config) (*Server, error) {
	config.Addr = cmp.Or(config.Addr, "127.0.0.1:0")
	config.OperatorAccount = cmp.Or(config.OperatorAccount, defaultOperatorAccount)
	config.InvalidationTime = cmp.Or(config.InvalidationTime, time.Second)
	config.LogSize = cmp.Or(config.LogSize, 10_000)
	if config.Now == nil {
		config.Now = time.Now
	}
	s := &Server{config: config, dir: config.Dir, served: make(chan struct{})}
	s.store.buckets, s.store.domains = map[string]*bucket{}, map[string]*bucket{}
	s.iam = newDirectory()
	s.cdn.distributions = map[string]*distribution{}
	s.cdn.lastCall = map[string]time.Time{}
	s.journal.entries.limit, s.journal.refused.limit = config.LogSize, config.LogSize
	s.journal.reset()
	s.closing, s.close = context.WithCancel(context.Background())

	if s.dir == "" {
		dir, err := os.MkdirTemp("", "awslocal-")
		if err != nil {
			return nil, fmt.Errorf("awslocal: make a directory for objects: %w", err)
		}
		s.dir, s.ownsDir = dir, true
	}
	listener, err := s.listen()
	if err != nil {
		s.removeDir()
		return nil, err
	}
	s.http = &http.Server{
		Handler:     s,
		BaseContext: func(net.Listener) context.Context { return s.closing },
	}
	go func() {
		defer close(s.served)
		_ = s.http.Serve(listener)
	}()
	return s, nil
}

func (s *Server) listen() (net.Listener, error) {
	listener, err := net.Listen("tcp", s.config.Addr)
	if err != nil {
		return nil, fmt.Errorf("awslocal: listen on %s: %w", s.config.Addr, err)
	}
	if !s.config.TLS {
		s.endpoint = "http://" + listener.Addr().String()
		return listener, nil
	}
	certificate, pool, err := selfSigned()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("awslocal: make a certificate: %w", err), listener.Close())
	}
	s.certPool = pool
	s.endpoint = "https://" + listener.Addr().String()
	return tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}}), nil
}

// Endpoint is the one URL that serves S3, STS and CloudFront; a call's
// signature tells which of them it means.
func (s *Server) Endpoint() string { return s.endpoint }

// CertPool verifies the server's certificate; nil without Config.TLS.
func (s *Server) CertPool() *x509.CertPool { return s.certPool }

// Close ends running calls, stops serving and removes what the server stored
// in a directory of its own. It may be called more than once.
func (s *Server) Close() {
	s.once.Do(func() {
		s.close()
		_ = s.http.Close()
		<-s.served
		s.running.Lock()
		defer s.running.Unlock()
		s.removeDir()
	})
}

func (s *Server) removeDir() {
	if s.ownsDir {
		_ = os.RemoveAll(s.dir)
	}
}

func (s *Server) now() time.Time { return s.config.Now().UTC() }
