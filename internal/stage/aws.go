package stage

import (
	"net/http"
	"strings"
)

// AtAWS makes workers believe that the stand-in is AWS itself, at AWS's own
// addresses: what differs at other endpoints (addresses by path, a HEAD before
// each COPY, no checksum behind a stream) is then as in production.
func (s *Stage) AtAWS() *Stage {
	s.Config.AWS.BaseEndpoint = nil
	s.Config.Transport = detour{
		Transport: http.DefaultTransport.(*http.Transport).Clone(), //nolint:forcetypeassert // the standard library's own
		host:      strings.TrimPrefix(s.AWS.Endpoint(), "http://"),
	}
	return s
}

// AtStandIn undoes AtAWS: workers know the stand-in as what it is.
func (s *Stage) AtStandIn() *Stage {
	s.Config.AWS.BaseEndpoint, s.Config.Transport = new(s.AWS.Endpoint()), nil
	return s
}

// detour sends what is meant for AWS to the stand-in.
type detour struct {
	*http.Transport
	host string
}

func (d detour) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Host = req.URL.Host
	req.URL.Scheme, req.URL.Host = "http", d.host
	return d.Transport.RoundTrip(req)
}
