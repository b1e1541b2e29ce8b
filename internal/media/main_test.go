package media_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParsePrefix("127.0.0.1/32")

func newSources(t testing.TB, options media.Options) *media.Sources {
	t.Helper()
	sources, err := media.New(options)
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// newHost serves https on 127.0.0.1, and gives the options that let it be used.
func newHost(t testing.TB, handler http.HandlerFunc) (*httptest.Server, media.Options) {
	t.Helper()
	return newHostBehind(t, handler, func(l net.Listener) net.Listener { return l })
}

// newHostBehind is a host whose connections pass through something.
func newHostBehind(t testing.TB, handler http.HandlerFunc, through func(net.Listener) net.Listener) (*httptest.Server, media.Options) {
	t.Helper()
	host := httptest.NewUnstartedServer(handler)
	host.Listener = through(host.Listener)
	host.Config.ErrorLog = log.New(io.Discard, "", 0)
	host.StartTLS()
	t.Cleanup(host.Close)
	roots := x509.NewCertPool()
	roots.AddCert(host.Certificate())
	return host, media.Options{RootCAs: roots, AllowCIDRs: []netip.Prefix{loopback}, SpoolDir: t.TempDir()}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// receive opens a source and reads it to its end. What it returns is what a
// consumer got, whether or not there was an error.
func receive(t testing.TB, sources *media.Sources, source string, size *int64, sum string) ([]byte, *media.Content, error) {
	t.Helper()
	content, err := sources.Open(testContext(t), media.Upload{Source: source, Size: size, SHA256: sum})
	if err != nil {
		return nil, nil, err
	}
	defer content.Body.Close()
	got, err := io.ReadAll(content.Body)
	if err != nil && int64(len(got)) >= content.Size && content.Size > 0 {
		t.Errorf("all %d bytes were given out although verification failed: %v", content.Size, err)
	}
	return got, content, err
}

func wantFailure(t testing.TB, err error, class failure.Class, code string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s %s", class, code)
	}
	got := failure.Of(err)
	if got.Class != class || got.Code != code {
		t.Errorf("got %s %s (%v), want %s %s", got.Class, got.Code, err, class, code)
	}
	if got.Slows() != (code == media.CodeSlow) {
		t.Errorf("it is %t that %v shrinks the customer's integration", got.Slows(), err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sized(n int) *int64 {
	size := int64(n)
	return &size
}
