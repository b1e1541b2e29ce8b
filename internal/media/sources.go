// Package media opens the bytes of an upload where its event says they are:
// in the CMS's staging storage (s3://), at a stranger's URL (https://), or
// below a directory of this machine (file:).
//
// Whatever the source claims or sends, a consumer never gets all bytes of a
// content that isn't what the event promised: see Content.
package media

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/secret"
)

// Codes of this package's own transient failures. They differ from the
// customer's bucket's on purpose: a failing or denied source says nothing about
// the customer's integration, so it neither shrinks nor blocks it. A slow one
// shrinks it, since its transfers keep slots from others.
const (
	// CodeUnavailable is a source that can't be reached, answers 5xx or 429, or
	// breaks off.
	CodeUnavailable = failure.SourceUnavailable
	// CodeSlow is a source that is silent for too long, or sends too slowly.
	CodeSlow = failure.SourceSlow
	// CodeDenied is our own staging bucket or file root denying the worker: a
	// fault of the installation, which its operators mend.
	CodeDenied = "source_denied"
)

// MaxUpload is the most that one PUT can carry, in bytes.
const MaxUpload int64 = 5 << 30

// Options say which sources are open, and how far. The zero value opens
// https:// only.
type Options struct {
	// FileRoot is the directory that file: paths are relative to; empty
	// refuses them all. It must hold neither Database nor SpoolDir.
	FileRoot string
	// Database is the file of an SQLite database; empty where there is none.
	Database string
	// StagingBuckets are the only names that s3:// may name.
	StagingBuckets []string
	// StagingPrefix is what the keys of s3:// sources must begin with, such as
	// {service_id}/, which stands for the event's own service; empty allows
	// every key, so that an event can name another customer's.
	StagingPrefix string
	// S3 reads the staging buckets under the worker's own credentials.
	S3 *s3.Client

	// AllowCIDRs are exceptions from the SSRF guard, for tests.
	AllowCIDRs []netip.Prefix
	// SourcePorts are the ports of https:// sources (443 and 80).
	SourcePorts []uint16
	// RootCAs vouch for https:// sources; nil means the system's.
	RootCAs *x509.CertPool
	// Resolver looks up the hosts of https:// sources; nil means the system's.
	Resolver *net.Resolver

	// MaxUpload bounds a content, in bytes; 0 means the most, 5 GB.
	MaxUpload int64
	// SpoolDir holds contents of unknown length until they are closed; empty
	// means the system's temporary directory.
	SpoolDir string
	// SpoolLimit bounds all that is there, in bytes (20 GiB), and half of it
	// what is there of one service. It must be at least twice MaxUpload.
	SpoolLimit int64

	// ConnectTimeout bounds one connect, and one TLS handshake (10 s).
	ConnectTimeout time.Duration
	// HeaderTimeout bounds the wait for an answer's head (30 s); for s3://
	// the SDK's own retries count in.
	HeaderTimeout time.Duration
	// IdleTimeout bounds one read of a body (60 s).
	IdleTimeout time.Duration
	// TransferTimeout bounds an https:// transfer as a whole, so that a
	// stranger's trickle can't hold a slot for days (2 h).
	TransferTimeout time.Duration
	// MinRate is how many bytes a second an https:// source must send on
	// average, once RateGrace is over (64 KiB; 30 s). Only the time spent on
	// waiting for the source counts, not a slow consumer's.
	MinRate   int64
	RateGrace time.Duration
	// SlowAfter is how far a source may fall behind MinRate, the wait for its
	// answer included, until its transfer counts as slow: see Upload.Slow (5 s).
	SlowAfter time.Duration
	// MaxRedirects is how many redirects are followed (5).
	MaxRedirects int
}

// Sources opens contents. It is safe for concurrent use and holds nothing
// open but the contents that it gave out.
type Sources struct {
	options   Options
	transport *http.Transport
	budget    *budget
}

// New checks the options and fills in defaults.
func New(o Options) (*Sources, error) {
	if o.MaxUpload < 0 || o.MaxUpload > MaxUpload {
		return nil, fmt.Errorf("media: the upload limit is %d bytes: it must be between 1 and %d (0 means the most)", o.MaxUpload, MaxUpload)
	}
	if o.MinRate < 0 {
		return nil, fmt.Errorf("media: the least rate of a source is %d bytes a second: it must be at least 1 (0 means the default)", o.MinRate)
	}
	if len(o.StagingBuckets) > 0 && o.S3 == nil {
		return nil, fmt.Errorf("media: staging buckets are named, but there is no S3 client to read them with")
	}
	if o.StagingPrefix != "" && !strings.HasSuffix("/"+o.StagingPrefix, "/"+serviceIDVariable+"/") {
		return nil, fmt.Errorf("media: the staging prefix %q must end in the directory %s/, so that no service reads another's keys", o.StagingPrefix, serviceIDVariable)
	}
	for _, bucket := range o.StagingBuckets {
		if bucket == "" || strings.Contains(bucket, "/") {
			return nil, fmt.Errorf("media: %q can't be the name of a staging bucket", bucket)
		}
	}
	if err := checkDirectory("file root", o.FileRoot); err != nil {
		return nil, err
	}
	if err := checkDirectory("spool directory", o.SpoolDir); err != nil {
		return nil, err
	}
	if err := o.checkPrivate(); err != nil {
		return nil, err
	}
	o.StagingBuckets = slices.Clone(o.StagingBuckets)
	o.AllowCIDRs = slices.Clone(o.AllowCIDRs)
	o.SourcePorts = slices.Clone(o.SourcePorts)
	if len(o.SourcePorts) == 0 {
		o.SourcePorts = []uint16{443, 80}
	}
	orDefault(&o.MaxUpload, MaxUpload)
	orDefault(&o.SpoolLimit, DefaultSpoolLimit)
	if err := CheckSpoolLimit(o.SpoolLimit, o.MaxUpload); err != nil {
		return nil, fmt.Errorf("media: %w", err)
	}
	orDefault(&o.ConnectTimeout, 10*time.Second)
	orDefault(&o.HeaderTimeout, 30*time.Second)
	orDefault(&o.IdleTimeout, time.Minute)
	orDefault(&o.TransferTimeout, 2*time.Hour)
	orDefault(&o.MinRate, 64<<10)
	orDefault(&o.RateGrace, 30*time.Second)
	orDefault(&o.SlowAfter, 5*time.Second)
	orDefault(&o.MaxRedirects, 5)
	return &Sources{options: o, transport: newTransport(o), budget: newBudget(o.SpoolLimit, o.MaxUpload)}, nil
}

// Spooled is how many bytes of contents are in the spool now.
func (s *Sources) Spooled() int64 { return s.budget.reserved() }

func orDefault[T comparable](value *T, standard T) {
	var zero T
	if *value == zero {
		*value = standard
	}
}

func checkDirectory(what, path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("media: the %s can't be used: %w", what, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("media: the %s %q isn't a directory", what, path)
	}
	return nil
}

// Upload is what an event says of its bytes.
type Upload struct {
	// ServiceID is the customer's service, for Options.StagingPrefix and the
	// service's share of the spool.
	ServiceID string
	Source    string
	// Size and SHA256 (hex) are what the event claims, nil and empty where it
	// claims nothing.
	Size   *int64
	SHA256 string
	// Slow is told when a remote source has become slow, and when it has caught
	// up or isn't waited for any more. Where it returns false, the transfer of a
	// source that has become slow ends. nil means that nobody wants to know.
	Slow func(slow bool) bool
}

// Open opens an upload's source. ctx must outlive the content, and the caller
// closes its Body. Every error is classified, or the context's own.
func (s *Sources) Open(ctx context.Context, upload Upload) (*Content, error) {
	digest, err := parseDigest(upload.SHA256)
	if err != nil {
		return nil, err
	}
	size := upload.Size
	if size != nil && *size < 0 {
		return nil, failure.New(failure.Permanent, failure.InvalidEvent, "the event says that the media has %d bytes", *size)
	}
	if size != nil && *size > s.options.MaxUpload {
		return nil, s.tooLarge("the media", *size)
	}
	stream, err := s.openStream(ctx, upload)
	if err != nil {
		return nil, err
	}
	content, err := s.content(stream, upload.ServiceID, size, digest)
	if err != nil {
		stream.body.Close()
		return nil, err
	}
	return content, nil
}

func parseDigest(sha256hex string) ([]byte, error) {
	if sha256hex == "" {
		return nil, nil
	}
	digest, err := hex.DecodeString(sha256hex)
	if err != nil || len(digest) != sha256.Size {
		return nil, failure.New(failure.Permanent, failure.InvalidEvent, "the event's checksum isn't the hex of a SHA-256: it has %d characters, expected %d hex digits", len(sha256hex), 2*sha256.Size)
	}
	return digest, nil
}

func (s *Sources) tooLarge(name string, size int64) error {
	return failure.New(failure.Permanent, failure.TooLarge, "%s has %d bytes, above the upload limit of %d", name, size, s.options.MaxUpload)
}

// stream is a source that answered. Its body's errors are classified, and it
// returns io.EOF only where the source ended in order, not where it broke off.
type stream struct {
	// name is for errors; see shown.
	name string
	// size is what the source says, in bytes; -1 where it doesn't say.
	size int64
	// openEnded says that nothing but the connection's end delimits the body,
	// so that a cut looks like its end.
	openEnded bool
	body      io.ReadCloser
}

func (s *Sources) openStream(ctx context.Context, upload Upload) (*stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("source not opened: %w", contextError(ctx))
	}
	source := upload.Source
	scheme, rest, found := strings.Cut(source, ":")
	switch {
	case found && scheme == "s3" && strings.HasPrefix(rest, "//"):
		return s.openStaging(ctx, rest[len("//"):], upload)
	case found && strings.EqualFold(scheme, "https") && strings.HasPrefix(rest, "//"):
		return s.openHTTPS(ctx, upload)
	case found && scheme == "file":
		return s.openFile(ctx, rest)
	default:
		// Not echoed: it may be a signed URL of a scheme that we refuse.
		return nil, refused("the source is none of s3://bucket/key, https://… and file:path")
	}
}

// shown is a source in an error. Of every kind of source, what may be secret in a
// URL is hidden: publishers mistake them for each other.
func shown(source string) string { return fmt.Sprintf("%q", secret.Hide(source)) }

func refused(format string, args ...any) *failure.Error {
	return failure.New(failure.Permanent, failure.SourceRefused, format, args...)
}

func gone(format string, args ...any) *failure.Error {
	return failure.New(failure.Permanent, failure.SourceGone, format+" (a source must stay readable until its event is completed or discarded)", args...)
}

func unavailable(format string, args ...any) *failure.Error {
	return failure.New(failure.Transient, CodeUnavailable, format, args...)
}

func tooSlow(format string, args ...any) *failure.Error {
	return failure.New(failure.Transient, CodeSlow, format, args...)
}

func denied(format string, args ...any) *failure.Error {
	return failure.New(failure.Transient, CodeDenied, format, args...)
}

// contextError tells why the context ended: its own error, which decides the
// class, and the cause that its canceller gave.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}
