package history_test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// What a step of a history does.
const (
	publishing      = "publish"
	publishingAgain = "publish again"
	committing      = "commit"
	rollingBack     = "roll back"
	failing         = "calls fail:"
	befalling       = "a worker is"
	lingering       = "stay open while others look past"
	settling        = "wait until all is quiet"
)

type step struct {
	what string
	tx   int
	act  *act
	rule awslocal.Rule
	trap trap
	// want is what there should be when all is quiet.
	want model
}

func (s step) String() string {
	switch s.what {
	case publishing, publishingAgain:
		return fmt.Sprintf("%s in transaction %d: %s", s.what, s.tx, s.act)
	case committing, rollingBack, lingering:
		return fmt.Sprintf("%s transaction %d", s.what, s.tx)
	case failing:
		how := s.rule.Code
		if s.rule.Hang {
			how = "hang"
		} else if s.rule.Reset {
			how = "reset"
		}
		return fmt.Sprintf("%s %s %s, after the effect: %t, after %d calls, %d times",
			s.what, s.rule.API, how, s.rule.AfterEffect, s.rule.Skip, s.rule.Times)
	case befalling:
		return fmt.Sprintf("%s %s a call, after %d", s.what, s.trap.mishap, s.trap.skip)
	}
	return s.what
}

// trouble makes some calls fail for a while, with or without their effect.
func (c *cms) trouble(t *rapid.T) {
	rule := awslocal.Rule{
		API: rapid.SampledFrom([]string{"s3:PutObject", "s3:CopyObject", "s3:DeleteObject", "s3:DeleteObjects",
			"s3:HeadObject", "s3:ListObjectsV2", "sts:AssumeRole"}).Draw(t, "API"),
		AfterEffect: rapid.Bool().Draw(t, "after the effect"),
		Skip:        rapid.IntRange(0, 4).Draw(t, "skip"),
		Times:       rapid.IntRange(1, 3).Draw(t, "times"),
	}
	switch rapid.SampledFrom([]string{"error", "conflict", "slow down", "hang", "reset"}).Draw(t, "how") {
	case "error":
		rule.Status, rule.Code = 500, "InternalError"
	case "conflict": // the SDK doesn't try again by itself
		rule.Status, rule.Code = 409, "OperationAborted"
	case "slow down":
		rule.Status, rule.Code = 503, "SlowDown"
	case "hang":
		rule.Hang = true
	case "reset":
		rule.Reset = true
	}
	c.add(step{what: failing, rule: rule})
}

// mishap lets something befall a worker.
func (c *cms) mishap(t *rapid.T) {
	c.add(step{what: befalling, trap: trap{
		mishap: rapid.SampledFrom([]mishap{frozenBefore, frozenAfter, killedBefore, killedAfter}).Draw(t, "mishap"),
		skip:   rapid.IntRange(0, 4).Draw(t, "skip"),
	}})
}

// performance is a history as it goes.
type performance struct {
	*stage.Stage
	crew      *crew
	cms       *cms
	services  map[string]*stage.Place
	tx        map[int]*sqlx.Tx
	later     map[int][]*act // SQLite has one writer: what its transaction will do
	envelopes map[*act]events.Envelope
}

func (p *performance) perform() {
	for _, s := range p.cms.steps {
		switch s.what {
		case publishing, publishingAgain:
			if p.DB.Dialect == database.SQLite {
				p.later[s.tx] = append(p.later[s.tx], s.act)
			} else {
				p.insert(s.tx, s.act)
			}
		case committing, rollingBack:
			p.end(s)
		case failing:
			p.AWS.Inject(s.rule)
		case befalling:
			p.crew.set(s.trap)
		case lingering:
			p.linger()
		case settling:
			p.settle()
			p.compare(s.want)
		}
	}
}

func (p *performance) insert(number int, list ...*act) {
	tx := p.tx[number]
	if tx == nil {
		var err error
		if tx, err = p.DB.BeginTxx(p.T.Context(), nil); err != nil {
			p.T.Fatal(err)
		}
		p.tx[number] = tx
	}
	dialect := events.PostgreSQL
	if p.DB.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: dialect, Schema: p.DB.Schema})
	if err != nil {
		p.T.Fatal(err)
	}
	for _, a := range list {
		if _, err := publisher.Publish(p.T.Context(), p.envelope(a)); err != nil {
			p.T.Fatal(err)
		}
	}
}

func (p *performance) end(s step) {
	if p.DB.Dialect == database.SQLite {
		p.insert(s.tx, p.later[s.tx]...)
	}
	tx := p.tx[s.tx]
	delete(p.tx, s.tx)
	if tx == nil {
		return // it came to nothing
	}
	finish := tx.Commit
	if s.what == rollingBack {
		finish = tx.Rollback
	}
	if err := finish(); err != nil {
		p.T.Fatal(err)
	}
}

// envelope is the same whenever the event is published.
func (p *performance) envelope(a *act) events.Envelope {
	if found, ok := p.envelopes[a]; ok {
		return found
	}
	e := events.Envelope{EventID: a.id, ServiceID: a.service, EnvironmentID: a.environment}
	version := versionOf(a.version)
	switch a.kind {
	case events.MediaUploadedType:
		upload := p.Upload(a.media, a.name, a.content)
		upload.PreviousFileName, upload.ContentType, upload.Version = a.from, a.contentType(), version
		if a.vague {
			upload.Size, upload.ChecksumSHA256 = nil, ""
		}
		e.Event = upload
	case events.MediaRenamedType:
		e.Event = events.MediaRenamed{MediaID: a.media, From: a.from, To: a.name, Version: version}
	case events.MediaDeletedType:
		e.Event = events.MediaDeleted{MediaID: a.media, FileName: a.name, Version: version}
	case events.EnvironmentCreatedType:
		e.Event = events.EnvironmentCreated{SourceEnvironmentID: a.source.environment, EnvironmentServiceID: a.serviceID()}
	case events.EnvironmentDeletedType:
		e.Event = events.EnvironmentDeleted{}
	}
	p.envelopes[a] = e
	return e
}

// linger waits until what was committed last was so some time ago: workers
// then look for new events above it.
func (p *performance) linger() {
	p.Await("a transaction to be open for long", func() bool {
		var past bool
		if err := p.DB.Get(&past, p.DB.SQL(`SELECT NOT EXISTS (SELECT 1 FROM {outbox}
			WHERE lane_id IS NULL OR created_at > {now} - 1500000)`)); err != nil {
			p.T.Fatal(err)
		}
		return past
	})
}

const unfinished = `SELECT (SELECT count(*) FROM {outbox} WHERE lane_id IS NULL OR finished_at IS NULL)
	+ (SELECT count(*) FROM {copy_items} WHERE state IN ('owed', 'waiting'))
	+ (SELECT count(*) FROM {copies} WHERE state <> 'ended')`

// settle waits until the workers have done all that was committed. Then all
// trouble ends, and what was on its way arrives.
func (p *performance) settle() {
	last, still := 0, 0
	p.Await("all to be done of\n"+p.cms.told(), func() bool {
		var left int
		if err := p.DB.Get(&left, p.DB.SQL(unfinished)); err != nil {
			p.T.Fatal(err)
		}
		if still++; left != last {
			last, still = left, 0
		}
		if still == 50 {
			p.AWS.ClearFaults() // calls hang
		}
		return left == 0
	})
	p.crew.steady()
	p.crew.deliverLate()
}

// told is the history as it was made up.
func (c *cms) told() string {
	var text strings.Builder
	fmt.Fprintf(&text, "history %d of this run:\n", c.number)
	for _, s := range c.steps {
		fmt.Fprintln(&text, s)
	}
	return text.String()
}

// told is the history, and what became of its events, by the time at which that
// began.
func (p *performance) told() string {
	var attempts []string
	if err := p.DB.Select(&attempts, p.DB.SQL(`
		SELECT started_at || ' attempt of event ' || sequence || ' by ' || worker || ', ' || duration_us || ' us: ' || coalesce(error, 'done') FROM {attempts}
		UNION ALL
		SELECT started_at || ' event ' || sequence || ' by ' || worker || ', ' || duration_us || ' us: ' || outcome FROM {outbox}
			WHERE started_at IS NOT NULL AND recorded_count = 0
		UNION ALL
		SELECT 'copy ' || copy_sequence || ' of ' || media_id || ': ' || state || ' ' || coalesce(error, '') FROM {copy_items}`)); err != nil {
		attempts = append(attempts, err.Error())
	}
	p.crew.mu.Lock()
	attempts = append(attempts, p.crew.befell...)
	p.crew.mu.Unlock()
	slices.Sort(attempts)
	return p.cms.told() + p.Dump() + strings.Join(attempts, "\n")
}
