package media_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func TestHTTPSRefusesAddressesThatAreNotPublic(t *testing.T) {
	t.Parallel()
	sources := newSources(t, media.Options{})
	for _, host := range []string{
		"127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "169.254.170.2",
		"100.64.0.1", "100.100.100.200", "0.0.0.0", "224.0.0.1", "255.255.255.255", "168.63.129.16",
		"[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]",
	} {
		_, _, err := receive(t, sources, "https://"+host+"/", nil, "")
		wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	}
}

func TestHTTPSAllowsOnlyWhatTheTestsNeed(t *testing.T) {
	t.Parallel()
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	_, port, _ := net.SplitHostPort(host.Listener.Addr().String())
	sources := newSources(t, options)
	if _, _, err := receive(t, sources, host.URL, nil, ""); err != nil {
		t.Error(err)
	}
	_, _, err := receive(t, sources, "https://127.0.0.2:"+port, nil, "")
	wantFailure(t, err, failure.Permanent, failure.SourceRefused)
}

func TestHTTPSRebindingNameIsRefused(t *testing.T) {
	t.Parallel()
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/again") // no body: the connection could be used again
		w.WriteHeader(http.StatusFound)
	})
	var lookups atomic.Int32
	options.Resolver = fakeDNS(func(string) netip.Addr {
		if lookups.Add(1) == 1 {
			return loopback.Addr() // stands for a public one
		}
		return netip.MustParseAddr("127.0.0.2")
	})
	_, port, _ := net.SplitHostPort(host.Listener.Addr().String())
	_, _, err := receive(t, newSources(t, options), "https://rebind.example.com:"+port+"/", nil, "")
	wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	if lookups.Load() != 2 {
		t.Errorf("%d lookups, want one per request", lookups.Load())
	}
}

func TestHTTPSNameOfPrivateAddressIsRefusedWithoutNamingIt(t *testing.T) {
	t.Parallel()
	sources := newSources(t, media.Options{Resolver: fakeDNS(func(string) netip.Addr { return netip.MustParseAddr("10.11.12.13") })})
	_, _, err := receive(t, sources, "https://internal.example.com/", nil, "")
	wantFailure(t, err, failure.Permanent, failure.SourceRefused)
	if err != nil && strings.Contains(err.Error(), "10.11.12.13") {
		t.Errorf("the error shows how a name resolves inside: %v", err)
	}
}

func TestHTTPSErrorsDoNotTellWhichNamesExistInside(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"https://db.internal.example.com/a", "https://db.internal.example.com:5432/a"} {
		failed := map[bool]*failure.Error{}
		for _, exists := range []bool{true, false} {
			sources := newSources(t, media.Options{Resolver: fakeDNS(func(string) netip.Addr {
				if exists {
					return netip.MustParseAddr("10.11.12.13")
				}
				return netip.Addr{}
			})})
			_, _, err := receive(t, sources, url, nil, "")
			wantFailure(t, err, failure.Permanent, failure.SourceRefused)
			failed[exists] = failure.Of(err)
		}
		if failed[true].Error() != failed[false].Error() {
			t.Errorf("a name that exists: %q, one that doesn't: %q", failed[true], failed[false])
		}
	}
}

func TestHTTPSNameThatCannotBeLookedUpIsRetried(t *testing.T) {
	t.Parallel()
	server := &net.OpError{
		Op: "read", Net: "udp", Source: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 5)}, Addr: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 53},
		Err: io.ErrClosedPipe,
	}
	sources := newSources(t, media.Options{Resolver: &net.Resolver{
		PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, server },
	}})
	_, _, err := receive(t, sources, "https://example.com/", nil, "")
	wantFailure(t, err, failure.Transient, media.CodeUnavailable)
	if strings.Contains(err.Error(), "10.0.0.") {
		t.Errorf("the error shows our name server: %v", err)
	}
}

func TestHTTPSOtherPortIsRefusedAndNamed(t *testing.T) {
	t.Parallel()
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://8.8.8.8:6379/")
		w.WriteHeader(http.StatusFound)
	})
	sources := newSources(t, options)
	for _, source := range []string{"https://8.8.8.8:6379/", host.URL} {
		_, _, err := receive(t, sources, source, nil, "")
		wantFailure(t, err, failure.Permanent, failure.SourceRefused)
		if !strings.Contains(err.Error(), "port 6379 isn't one of 443, 80 (OWNBUCKET_SOURCE_PORTS)") {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestHTTPSRedirects(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was asked over http") }))
	t.Cleanup(plain.Close)
	tests := []struct {
		name, location string
		refused        bool
	}{
		{name: "relative", location: "/end"},
		{name: "with a query string", location: "/end?x=a b&y=%2F"},
		{name: "as often as allowed", location: "/hop/4"},
		{name: "too often", location: "/hop/5", refused: true},
		{name: "to http", location: plain.URL, refused: true},
		{name: "to loopback", location: "https://127.0.0.2/", refused: true},
		{name: "to a private address", location: "https://192.168.0.1/", refused: true},
		{name: "to metadata", location: "https://169.254.169.254/latest/", refused: true},
		{name: "with user info", location: "https://user:password@127.0.0.1/", refused: true},
		{name: "to a file", location: "file:///etc/passwd", refused: true},
		{name: "to no URL", location: "https://[", refused: true},
		{name: "to no host", location: "https:///x", refused: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
				if referer := r.Header.Get("Referer"); referer != "" {
					t.Errorf("the URL before was told to the next host: %s", referer)
				}
				var left int
				switch n, _ := fmt.Sscanf(r.URL.Path, "/hop/%d", &left); {
				case r.URL.Path == "/start":
					w.Header().Set("Location", test.location)
					w.WriteHeader(http.StatusFound)
				case n == 1 && left > 0:
					w.Header().Set("Location", fmt.Sprintf("/hop/%d", left-1))
					w.WriteHeader(http.StatusPermanentRedirect)
				default:
					io.WriteString(w, "ok")
				}
			})
			got, _, err := receive(t, newSources(t, options), host.URL+"/start?signature", nil, "")
			if test.refused {
				wantFailure(t, err, failure.Permanent, failure.SourceRefused)
				return
			}
			if err != nil || string(got) != "ok" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestHTTPSIgnoresProxiesFromTheEnvironment(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	options.Resolver = fakeDNS(func(string) netip.Addr { return loopback.Addr() })
	_, port, _ := net.SplitHostPort(host.Listener.Addr().String())
	if _, _, err := receive(t, newSources(t, options), "https://cdn.example.com:"+port+"/", nil, ""); err != nil {
		t.Error(err)
	}
}

func TestHTTPSWithoutTrustworthyTLSIsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		host  string // instead of 127.0.0.1
		start func(*httptest.Server)
		trust bool
	}{
		"unknown authority":          {start: (*httptest.Server).StartTLS},
		"another name's certificate": {start: (*httptest.Server).StartTLS, trust: true, host: "another.example.net"},
		"no TLS":                     {start: (*httptest.Server).Start},
		"old TLS": {trust: true, start: func(s *httptest.Server) {
			s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
			s.StartTLS()
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was asked") }))
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			test.start(server)
			t.Cleanup(server.Close)
			roots := x509.NewCertPool()
			if test.trust {
				roots.AddCert(server.Certificate())
			}
			sources := newSources(t, media.Options{
				RootCAs: roots, AllowCIDRs: []netip.Prefix{loopback},
				Resolver: fakeDNS(func(string) netip.Addr { return loopback.Addr() }),
			})
			address := server.Listener.Addr().String()
			if test.host != "" {
				address = strings.Replace(address, "127.0.0.1", test.host, 1)
			}
			_, _, err := receive(t, sources, "https://"+address, nil, "")
			wantFailure(t, err, failure.Permanent, failure.SourceRefused)
		})
	}
}

// fakeDNS is a resolver whose one server answers A queries with what answer
// gives, and with "no such host" where that is the zero Addr.
func fakeDNS(answer func(name string) netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			serveDNS(server, answer)
		}()
		return client, nil
	}}
}

// serveDNS speaks DNS over a stream (RFC 1035 4.2.2) until the client hangs up.
func serveDNS(conn net.Conn, answer func(name string) netip.Addr) {
	const headerSize, typeA = 12, 1
	for {
		var length uint16
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		query := make([]byte, length)
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		end, name := headerSize, ""
		for query[end] != 0 {
			name += string(query[end+1:end+1+int(query[end])]) + "."
			end += 1 + int(query[end])
		}
		kind := binary.BigEndian.Uint16(query[end+1:])
		question := query[headerSize : end+5]
		reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
		if kind == typeA {
			if addr := answer(name); addr.IsValid() {
				reply[7] = 1
				reply = append(reply, 0xc0, headerSize, 0, typeA, 0, 1, 0, 0, 0, 0, 0, 4)
				reply = append(reply, addr.AsSlice()...)
			} else {
				reply[3] |= 3 // NXDOMAIN
			}
		}
		if binary.Write(conn, binary.BigEndian, uint16(len(reply))) != nil {
			return
		}
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}
