package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

// traffic is a CMS at work: a few services with some environments, in each of
// which media are uploaded, uploaded again, renamed and deleted all the while.
// A service's transactions follow each other; services don't wait for each
// other.
type traffic struct {
	t        testing.TB
	url      string
	root     string
	services []*service
	// finished is how many events are known to have ended. Publishing waits
	// while more than backlog are unfinished: the machine sets the pace.
	published, finished atomic.Int64
	backlog             int64
	uploads, renames    atomic.Int64
	publishing          sync.WaitGroup
}

// service is one of the CMS's customers.
type service struct {
	*traffic
	name       string
	number     int
	production *place
	// environments are those that exist; gone has been deleted.
	environments map[string]*place
	files        int
}

const (
	// mostMedia in one place: few, so that events often share one.
	mostMedia = 12
	// perTransaction events are published at once, at the most.
	perTransaction = 4
	pace           = 60 * time.Millisecond
)

// openTraffic gives each of n services settings and a bucket.
func openTraffic(t testing.TB, i *installation, c *cloud, url, root string, n int) *traffic {
	t.Helper()
	made := &traffic{t: t, url: url, root: root, backlog: 200}
	for number := range n {
		made.services = append(made.services, &service{
			traffic: made, number: number, name: fmt.Sprintf("SERVICE#%d", number),
			production:   i.production(fmt.Sprintf("SERVICE#%d", number), c.customer(t, fmt.Sprintf("bucket-%d", number), "media")),
			environments: map[string]*place{},
		})
	}
	return made
}

// flow publishes until the context ends; wait returns when all is published
// that the models know of.
func (t *traffic) flow(ctx context.Context) {
	for _, s := range t.services {
		t.publishing.Go(func() { s.run(ctx) })
	}
}

func (t *traffic) wait() { t.publishing.Wait() }

func (s *service) places() []*place {
	found := []*place{s.production}
	for _, name := range slices.Sorted(maps.Keys(s.environments)) {
		found = append(found, s.environments[name])
	}
	return found
}

func (s *service) run(ctx context.Context) {
	db, err := database.Open(s.t.Context(), s.url, database.DefaultSchema)
	if err != nil {
		s.t.Errorf("%s: %v", s.name, err)
		return
	}
	defer db.Close()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.published.Load()-s.finished.Load() > s.backlog {
			continue
		}
		var envelopes []events.Envelope
		for range 1 + rand.N(perTransaction) {
			l := s.next()
			envelopes = append(envelopes, events.Envelope{
				EventID: uuid.NewString(), ServiceID: l.ServiceID, EnvironmentID: l.EnvironmentID, Event: l.Data,
			})
		}
		if !s.publish(db, envelopes) {
			return
		}
	}
}

// publish publishes in one transaction, again and again until it knows that it
// did: the events' IDs make that harmless.
func (s *service) publish(db *database.DB, envelopes []events.Envelope) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := publishOnce(s.t.Context(), db, envelopes)
		switch {
		case err == nil:
			s.published.Add(int64(len(envelopes)))
			return true
		case !database.IsTransient(err):
			s.t.Errorf("%s: %v", s.name, err)
			return false
		}
		<-tick.C
	}
}

func publishOnce(ctx context.Context, db *database.DB, envelopes []events.Envelope) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after a commit
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: events.PostgreSQL})
	if err != nil {
		return err
	}
	if _, err := publisher.Publish(ctx, envelopes...); err != nil {
		return err
	}
	return tx.Commit()
}

// next is the service's next event, which the models already know of.
func (s *service) next() line {
	if rand.N(60) == 0 {
		return s.environment()
	}
	places := s.places()
	p := places[rand.N(len(places))]
	free := s.freeName(p)
	media := slices.Sorted(maps.Keys(p.media))
	if len(media) < mostMedia && rand.N(mostMedia) >= len(media) {
		s.uploads.Add(1)
		return p.upload(s.freeMedia(p), free, s.content(), sizeAndSum)
	}
	m := media[rand.N(len(media))]
	switch dice := rand.N(100); {
	case dice < 30:
		s.uploads.Add(1)
		return p.upload(m, p.media[m].name, s.content(), sizeAndSum)
	case dice < 50:
		s.uploads.Add(1)
		return p.upload(m, free, s.content(), sizeAndSum)
	case dice < 80:
		s.renames.Add(1)
		return p.rename(m, free)
	default:
		return p.remove(m)
	}
}

// environment creates an environment or deletes one.
func (s *service) environment() line {
	name := []string{"dev", "preview"}[rand.N(2)]
	if p := s.environments[name]; p != nil {
		delete(s.environments, name)
		return p.destroy()
	}
	made, l := s.production.create(name, fmt.Sprintf("shop-%d-%s", s.number, name))
	s.environments[name] = made
	return l
}

// freeName is one that no media has, though some may have had it.
func (s *service) freeName(p *place) string {
	taken := make(map[string]bool)
	for _, m := range p.media {
		taken[m.name] = true
	}
	for {
		name := fmt.Sprintf("%d %s", rand.N(2), awkward[rand.N(len(awkward))])
		if !taken[name] {
			return name
		}
	}
}

func (s *service) freeMedia(p *place) string {
	for n := 0; ; n++ {
		media := fmt.Sprintf("media-%d", n)
		if _, taken := p.media[media]; !taken {
			return media
		}
	}
}

// content is a new file with bytes of its own: no two uploads can be mistaken
// for each other.
func (s *service) content() content {
	sizes := []int{16, 1 << 10, 4 << 10, 70_000}
	bytes := make([]byte, sizes[rand.N(len(sizes))])
	binary.BigEndian.PutUint64(bytes, uint64(s.files))
	binary.BigEndian.PutUint64(bytes[8:], uint64(s.number))
	source := fmt.Sprintf("%d-%d", s.number, s.files)
	s.files++
	if err := os.WriteFile(filepath.Join(s.root, source), bytes, 0o600); err != nil {
		s.t.Error(err)
	}
	sum := sha256.Sum256(bytes)
	return content{source: source, kind: "image/png", size: int64(len(bytes)), sum: hex.EncodeToString(sum[:])}
}
