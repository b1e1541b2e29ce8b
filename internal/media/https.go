package media

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// maxHeaderBytes bounds an answer's head, interim answers included.
const maxHeaderBytes = 64 << 10

// newTransport makes the only way out to strangers' hosts: straight (no proxy
// from the environment, which would dial for us unchecked), guarded, and with
// a new connection per request, so that each is checked.
func newTransport(o Options) *http.Transport {
	dialer := &net.Dialer{
		Timeout:  o.ConnectTimeout,
		Resolver: o.Resolver,
		Control:  newGuard(o).control,
	}
	// HTTP/1.1 only: its bodies are bounded and timed by the connection alone.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    o.ConnectTimeout,
		ResponseHeaderTimeout:  o.HeaderTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		Protocols:              &protocols,
	}
}

func (s *Sources) openHTTPS(ctx context.Context, upload Upload) (_ *stream, err error) {
	at, err := url.Parse(upload.Source)
	if err != nil {
		return nil, refused("the source isn't a valid URL") // err quotes all of it
	}
	w := s.newWatch(ctx, upload)
	w.overall = w.limit(s.options.TransferTimeout, "not transferred")
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	for hop := 0; ; hop++ {
		if hop > s.options.MaxRedirects {
			return nil, refused("%s redirects more than %d times", urlName(at), s.options.MaxRedirects)
		}
		response, err := s.get(w, at)
		if err != nil {
			return nil, err
		}
		next, err := redirectTarget(at, response)
		if next == nil && err == nil {
			return s.answered(w, at, response)
		}
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
}

// get sends one request. It goes through the transport, not a client: that
// would follow redirects by itself, tell each host the last one's signed URL
// as Referer, and quote URLs in its errors.
func (s *Sources) get(w *watch, at *url.URL) (*http.Response, error) {
	name := urlName(at)
	switch {
	case at.Scheme != "https":
		return nil, refused("%s: only https is allowed, of redirects too", name)
	case at.Hostname() == "":
		return nil, refused("the source's URL has no host")
	case at.User != nil:
		return nil, refused("%s: a user name or password in a URL is not allowed", name)
	}
	request, err := http.NewRequestWithContext(w.ctx, http.MethodGet, "https://host/", nil)
	if err != nil {
		return nil, fmt.Errorf("making the request to %s: %w", name, err)
	}
	target := *at
	// What a browser does with a raw space; net/url escapes the path only.
	target.RawQuery = strings.ReplaceAll(at.RawQuery, " ", "%20")
	request.URL, request.Host = &target, target.Host
	request.Header.Set("User-Agent", "ownbucket")
	request.Header.Set("Accept", "*/*")
	request.Header.Set("Accept-Encoding", "identity")
	w.begin()
	response, err := s.transport.RoundTrip(request)
	w.end(0)
	if ended := w.ended(name); ended != nil {
		// An answer may still come: a server that is told of the close by TLS
		// can end its answer in order, and have sent next to nothing.
		if err == nil {
			response.Body.Close()
		}
		return nil, ended
	}
	if err != nil {
		return nil, classifyConnect(name, err)
	}
	return response, nil
}

// redirectTarget is where the answer points to, nil when it is no redirect.
func redirectTarget(at *url.URL, response *http.Response) (*url.URL, error) {
	switch response.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	next, err := at.Parse(response.Header.Get("Location"))
	if err != nil || response.Header.Get("Location") == "" {
		return nil, refused("%s redirects to nowhere: the answer %d has no valid Location", urlName(at), response.StatusCode)
	}
	return next, nil
}

func (s *Sources) answered(w *watch, at *url.URL, response *http.Response) (*stream, error) {
	name := urlName(at)
	if err := classifyAnswer(name, response); err != nil {
		response.Body.Close()
		return nil, err
	}
	body := &watchedBody{name: name, body: response.Body, watch: w, idle: s.options.IdleTimeout, least: leastRate{s.options.MinRate, s.options.RateGrace}}
	return &stream{name: name, size: response.ContentLength, openEnded: openEnded(response), body: body}, nil
}

func classifyAnswer(name string, response *http.Response) error {
	code := response.StatusCode
	status := fmt.Sprintf("%d %s", code, http.StatusText(code))
	switch {
	case code == http.StatusOK:
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound, code == http.StatusGone:
		return gone("%s answers %s: it is gone, or its URL has expired", name, status)
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500:
		return unavailable("%s answers %s", name, status)
	default:
		return refused("%s answers %s, expected 200", name, status)
	}
	// Stored as they came, compressed bytes would be served as the media.
	if encoded(response.Header) {
		return refused("%s sends compressed content although it was asked not to", name)
	}
	return nil
}

// encoded tells whether any Content-Encoding of any line, each of which may
// list several, changes the content. net/http keeps a space before the colon.
func encoded(header http.Header) bool {
	for name, lines := range header {
		if !strings.EqualFold(strings.TrimSpace(name), "Content-Encoding") {
			continue
		}
		for encoding := range strings.SplitSeq(strings.Join(lines, ","), ",") {
			if encoding = strings.TrimSpace(encoding); encoding != "" && !strings.EqualFold(encoding, "identity") {
				return true
			}
		}
	}
	return false
}

// classifyConnect sorts why there was no answer at all. What only the other
// side's owner can mend (its certificate, its address, no TLS at all) is
// permanent: it wouldn't change within the retries, and an event can be
// replayed. The rest may pass.
func classifyConnect(name string, err error) *failure.Error {
	var roots x509.SystemRootsError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var remote *net.OpError
	var dns *net.DNSError
	var port errPort
	switch {
	case errors.Is(err, errNotPublic), errors.As(err, &dns) && dns.IsNotFound:
		return refused("%s: %w", name, errNotPublic)
	case errors.As(err, &port):
		return refused("%s: %w", name, port)
	case errors.As(err, &roots):
		return unavailable("%s: this machine has no root certificates, install them: %w", name, roots)
	case errors.As(err, &certificate):
		return refused("%s: its certificate isn't valid: %w", name, certificate)
	case errors.As(err, &record):
		return refused("%s doesn't speak TLS", name)
	case errors.As(err, &remote) && remote.Op == "remote error": // crypto/tls's word for an alert
		return refused("%s: it ends the TLS handshake: %w", name, remote.Err)
	case isTimeout(err):
		return tooSlow("%s: no answer in time", name)
	default:
		return unavailable("%s: %s", name, networkReason(err))
	}
}

// isTimeout tells whether a host kept us waiting. A name server that does is ours.
func isTimeout(err error) bool {
	var dns *net.DNSError
	var timeout net.Error
	return !errors.As(err, &dns) && errors.As(err, &timeout) && timeout.Timeout()
}

// urlName is what of a URL may be shown.
func urlName(u *url.URL) string {
	return shown(u.Scheme + "://" + u.Host + u.EscapedPath())
}
