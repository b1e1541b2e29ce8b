package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

type publishCommand struct {
	File string `arg:"" optional:"" default:"-" help:"A file of JSON lines, or - for standard input, which is also the default."`
}

func (publishCommand) Help() string {
	return `Each line is one event. All of them are published in one transaction, or none: one line that breaks the
contract ends it with exit code 1, and each such line is named with what is wrong. An event ID that was published before
is a duplicate and changes nothing; without one, an ID is made. A line has at most 1 MiB, all lines together 64 MiB.

Examples:
  ownbucket publish events.jsonl
  echo '{"type":"MediaDeleted","service_id":"S1","data":{"media_id":"m1","file_name":"a.png","version":"2026-01-02T03:04:05Z"}}' | ownbucket publish`
}

// published is what the command answers; its JSON is a contract.
type published struct {
	Published  int      `json:"published"`
	Duplicates int      `json:"duplicates"`
	EventIDs   []string `json:"event_ids"`
}

func (c publishCommand) Run(ctx context.Context, a *app) error {
	envelopes, err := c.read(ctx, a)
	if err != nil {
		return err
	}
	return a.withDatabase(ctx, func(db *database.DB) error {
		result, err := publish(ctx, db, envelopes)
		if err != nil {
			return err
		}
		answer := published{Published: result.Inserted, Duplicates: result.Duplicates, EventIDs: result.EventIDs}
		if answer.EventIDs == nil {
			answer.EventIDs = []string{}
		}
		return printOne(a, answer, field{"published", fmt.Sprint(answer.Published)},
			field{"duplicates", fmt.Sprint(answer.Duplicates)})
	})
}

// read reads until the context ends. Opening and reading what nobody writes to
// can't be interrupted otherwise: its goroutine stays until the program ends.
func (c publishCommand) read(ctx context.Context, a *app) ([]events.Envelope, error) {
	type read struct {
		envelopes []events.Envelope
		err       error
	}
	done := make(chan read, 1)
	go func() {
		envelopes, err := c.open(a.stdin)
		done <- read{envelopes, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("read events: %w; nothing was published", context.Cause(ctx))
	case all := <-done:
		return all.envelopes, all.err
	}
}

func (c publishCommand) open(stdin io.Reader) ([]events.Envelope, error) {
	if c.File == "-" {
		return readEnvelopes(stdin)
	}
	file, err := os.Open(c.File)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer file.Close()
	return readEnvelopes(file)
}

func publish(ctx context.Context, db *database.DB, envelopes []events.Envelope) (result events.Result, err error) {
	dialect := events.PostgreSQL
	if db.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return result, fmt.Errorf("publish: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: dialect, Schema: db.Schema})
	if err != nil {
		return result, err
	}
	// As rows for the database, all of them would take much memory.
	for chunk := range slices.Chunk(envelopes, 1000) {
		part, err := publisher.Publish(ctx, chunk...)
		if err != nil {
			return result, err
		}
		result.Inserted += part.Inserted
		result.Duplicates += part.Duplicates
		result.EventIDs = append(result.EventIDs, part.EventIDs...)
	}
	return result, tx.Commit()
}

// lineErrors names each bad line of an input, one a line.
type lineErrors []string

func (e lineErrors) Error() string { return strings.Join(e, "\n") }

// maxLineErrors keeps a file in a wrong format from flooding the screen.
const maxLineErrors = 20

const (
	// maxLine is far above what an event needs, and maxInput bounds what is kept of
	// events while they are read and validated.
	maxLine  = 1 << 20
	maxInput = 64 << 20
)

// readEnvelopes reads every line before any is published; blank lines don't count
// as events.
func readEnvelopes(r io.Reader) ([]events.Envelope, error) {
	var envelopes []events.Envelope
	var bad lineErrors
	input := &io.LimitedReader{R: r, N: maxInput + 1}
	lines := bufio.NewScanner(input)
	lines.Buffer(nil, maxLine)
	number := 0
	for len(bad) < maxLineErrors && lines.Scan() {
		number++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		envelope, fault := events.ParseEnvelope(line)
		if fault != nil {
			bad = append(bad, fmt.Sprintf("line %d: %v", number, fault))
		}
		envelopes = append(envelopes, envelope)
	}
	switch err := lines.Err(); {
	case input.N == 0:
		// The last line may be a part of one.
		return nil, errors.New("read events: there is more than 64 MiB; nothing was published, split it into several inputs")
	case len(bad) > 0:
		return nil, bad
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("read events: line %d is longer than 1 MiB, but each line is one event; nothing was published", number+1)
	case err != nil:
		return nil, fmt.Errorf("read events, line %d: %w", number+1, err)
	}
	return envelopes, nil
}
