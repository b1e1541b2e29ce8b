package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/events"
)

// line is one line of `ownbucket publish`.
type line struct {
	Type          string       `json:"type"`
	ServiceID     string       `json:"service_id"`
	EnvironmentID string       `json:"environment_id,omitempty"`
	Data          events.Event `json:"data"`
}

// account is a customer's side, whichever stand-in it is on.
type account struct {
	Bucket, RoleARN, ExternalID, Prefix string
}

// place is one environment of a service, and a model of what the manual says
// its bucket must hold: each change is made here and returned as the event
// that tells the program of it.
type place struct {
	account
	service, environment string
	// stamp is the service ID in the metadata.
	stamp string
	// directory is made anew from the manual's words, not by the program.
	directory string
	media     map[string]stored
	versions  *int64
}

// stored is a media where it should be.
type stored struct {
	content content
	name    string
	version events.Version
}

// content is bytes that exist below the file root.
type content struct {
	source string // relative to the root
	kind   string // the content type
	size   int64
	sum    string // SHA-256 in hex
}

// production gives a service its settings.
func (i *installation) production(service string, a account) *place {
	i.t.Helper()
	i.secrets = append(i.secrets, a.ExternalID)
	i.run("integration", "set", "--service", service, "--bucket", a.Bucket, "--region", region,
		"--role-arn", a.RoleARN, "--external-id", a.ExternalID, "--prefix", a.Prefix,
		"--skip-test", "--reason", "end-to-end test")
	first := time.Date(2025, 8, 12, 15, 49, 22, 123456000, time.UTC).UnixMicro()
	return &place{account: a, service: service, stamp: service, media: map[string]stored{}, versions: &first}
}

// prefix is what all keys of the place begin with.
func (p *place) prefix() string {
	var prefix string
	for _, part := range []string{p.Prefix, p.directory} {
		if part != "" {
			prefix += part + "/"
		}
	}
	return prefix
}

// version is newer than all before, across a minute's and a second's end.
func (p *place) version() events.Version {
	*p.versions += (700 * time.Millisecond).Microseconds()
	return events.NewVersion(time.UnixMicro(*p.versions))
}

func (p *place) line(e events.Event) line {
	return line{Type: e.Type(), ServiceID: p.service, EnvironmentID: p.environment, Data: e}
}

// how much an upload's event tells about its bytes.
type told int

const (
	sizeAndSum told = iota
	sizeAlone
	nothing
)

// upload is a first upload, or a re-upload under that name.
func (p *place) upload(media, name string, c content, tells told) line {
	e := p.uploaded(media, name, c)
	if tells != sizeAndSum {
		e.ChecksumSHA256 = ""
	}
	if tells == nothing {
		e.Size = nil
	}
	p.media[media] = stored{content: c, name: name, version: e.Version}
	return p.line(e)
}

// uploaded is an upload that the model doesn't know of.
func (p *place) uploaded(media, name string, c content) events.MediaUploaded {
	return events.MediaUploaded{MediaID: media, FileName: name, PreviousFileName: p.media[media].name,
		ContentType: c.kind, Size: &c.size, ChecksumSHA256: c.sum, Source: "file:" + c.source, Version: p.version()}
}

func (p *place) rename(media, to string) line {
	e := p.renamed(media, to)
	p.media[media] = stored{content: p.media[media].content, name: to, version: e.Version}
	return p.line(e)
}

// renamed is a rename that the model doesn't know of.
func (p *place) renamed(media, to string) events.MediaRenamed {
	return events.MediaRenamed{MediaID: media, From: p.media[media].name, To: to, Version: p.version()}
}

func (p *place) remove(media string) line {
	e := events.MediaDeleted{MediaID: media, FileName: p.media[media].name, Version: p.version()}
	delete(p.media, media)
	return p.line(e)
}

// create makes another environment of the service, with the media as of now.
func (p *place) create(environment, serviceID string) (*place, line) {
	sum := sha256.Sum256([]byte(serviceID))
	made := &place{
		account: p.account, service: p.service, environment: environment, stamp: serviceID,
		// The tests' service IDs consist of a-z, 0-9 and single hyphens.
		directory: serviceID + "-" + hex.EncodeToString(sum[:])[:12],
		media:     make(map[string]stored, len(p.media)), versions: p.versions,
	}
	for media, s := range p.media {
		made.media[media] = s
	}
	return made, made.line(events.EnvironmentCreated{SourceEnvironmentID: p.environment, EnvironmentServiceID: serviceID})
}

// destroy deletes the environment.
func (p *place) destroy() line {
	clear(p.media)
	return p.line(events.EnvironmentDeleted{})
}

// object is what a bucket holds at a key.
type object struct {
	SHA256, ContentType, CacheControl string
	Size                              int64
	Metadata                          map[string]string
}

// objects are what the manual says the place's part of the bucket holds.
func (p *place) objects() map[string]object {
	wanted := make(map[string]object, len(p.media))
	for _, s := range p.media {
		wanted[p.prefix()+s.name] = object{
			SHA256: s.content.sum, Size: s.content.size, ContentType: s.content.kind,
			Metadata: map[string]string{
				"upload-source":    "microcms",
				"microcms-service": p.stamp,
				"microcms-version": s.version.Time().Format("20060102150405"),
				"microcms-status":  "public",
			},
		}
	}
	return wanted
}

// expect compares a whole bucket with what strangers put there and what the
// places' models hold.
func expect(t testing.TB, phase string, got, strangers map[string]object, places ...*place) {
	t.Helper()
	want := make(map[string]object, len(got))
	for key, o := range strangers {
		want[key] = o
	}
	for _, p := range places {
		for key, o := range p.objects() {
			want[key] = o
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s: the bucket isn't as the events left it (-want +got), %d of %d objects:\n%s",
			phase, len(got), len(want), shorten(diff))
	}
}

func shorten(text string) string {
	const most = 6000
	if len(text) <= most {
		return text
	}
	return text[:most] + fmt.Sprintf("\n… and %d lines more", strings.Count(text[most:], "\n"))
}
