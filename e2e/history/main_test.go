// Package history_test lets whole installations live through random histories.
package history_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A check is a whole installation: few do for CI. -rapid.checks=1000 looks
	// deeper, -rapid.steps=200 makes histories longer.
	for name, value := range map[string]string{"rapid.checks": "6", "rapid.steps": "40"} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			if err := f.Value.Set(value); err != nil {
				panic(err)
			}
		}
	}
	goleak.VerifyTestMain(m)
}

// Whatever is published, by however many transactions, whatever S3 answers and
// whoever is killed or stands still: effects come in publish order, each event
// completes once, and buckets, metadata and ledger end as if the events had run
// one after the other.
func TestAnyHistoryEndsAsIfItsEventsHadRunOneByOne(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                  string
		url                   func(testing.TB) string
		workers, transactions int
	}{
		{"sqlite", dbtest.SQLiteURL, 1, 1},
		{"postgresql", dbtest.PostgreSQLURL, 3, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			number := 0
			rapid.Check(t, func(check *rapid.T) {
				number++
				made := newCMS(check, c.transactions)
				made.number = number
				strange := made.model.clone()
				check.Repeat(actions(made))
				made.endAll(check)
				it := stage.NewIteration(t, check)
				defer it.End()
				live(it, c.url(it), c.workers, made, strange)
			})
		})
	}
}

// actions are what a history is made of.
func actions(c *cms) map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"publish":            c.publish,
		"publish more":       c.publish,
		"publish still more": c.publish,
		"publish again":      c.publishAgain,
		"end a transaction":  c.endOne,
		"linger":             c.linger,
		"trouble":            c.trouble,
		"mishap":             c.mishap,
		"settle":             c.settle,
	}
}

// live lets an installation live through the history.
func live(t testing.TB, url string, workers int, made *cms, strange model) {
	s := stage.New(t, dbtest.Open(t, url)).AtAWS()
	s.Config.Poll, s.Config.Grace = 10*time.Millisecond, 50*time.Millisecond
	if s.DB.Dialect == database.PostgreSQL {
		s.Config.LeaseDuration = time.Second // a killed worker's leases must lapse
	}
	s.Config.RetryAttempts = 25
	p := &performance{Stage: s, cms: made, services: map[string]*stage.Place{}, tx: map[int]*sqlx.Tx{},
		later: map[int][]*act{}, envelopes: map[*act]events.Envelope{}}
	for at := range strange {
		if at.environment == "" {
			n := len(p.services)
			p.services[at.service] = s.Customer(at.service, fmt.Sprintf("customer-%d", n), []string{"", "media", "a/b"}[n%3])
		}
	}
	for at, site := range strange {
		for name := range site.strangers {
			if _, err := s.AWS.PutDirect(p.services[at.service].Bucket, p.key(at, name), []byte(strangers), awslocal.Stranger{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.crew = newCrew(s, url, workers)
	p.perform()
	p.settle()
	p.crew.stop()
	s.Work() // finds nothing to do
	p.verify()
}
