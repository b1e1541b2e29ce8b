package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/database"
)

type publishCommand struct {
	File string `arg:"" optional:"" default:"-" help:"JSON lines; - is standard input." placeholder:"FILE"`
}

// Help teaches by example.
func (publishCommand) Help() string {
	return `Each line is one event: {"event_id"?, "type", "service_id", "environment_id"?, "data"}. All are published in one
transaction, or none: a bad line ends it with "line N: reason" and exit code 1. Publishing an event_id again is harmless.

Example:
  echo '{"type":"MediaDeleted","service_id":"S1","data":{"media_id":"m1","file_name":"a.png",
    "version":"2026-01-02T03:04:05Z"}}' | tr -d '\n' | ownbucket publish`
}

type published struct {
	Published  int64    `json:"published"`
	Duplicates int64    `json:"duplicates"`
	EventIDs   []string `json:"event_ids"`
}

func (c *publishCommand) Run(ctx context.Context, e *environment) (err error) {
	envelopes, err := c.read(e.stdin)
	if err != nil {
		return err
	}
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	done, err := publish(ctx, db, envelopes)
	if err != nil {
		return err
	}
	return e.print(done, func(t table.Writer) {
		t.AppendRow(table.Row{fmt.Sprintf("published %d events, %d duplicates", done.Published, done.Duplicates)})
	})
}

func (c *publishCommand) read(stdin io.Reader) (_ []events.Envelope, err error) {
	input := stdin
	if c.File != "-" {
		file, err := os.Open(c.File)
		if err != nil {
			return nil, fmt.Errorf("open the events: %w", err)
		}
		defer file.Close()
		input = file
	}
	var envelopes []events.Envelope
	reader := bufio.NewReader(input)
	for number := 1; ; number++ {
		line, readErr := reader.ReadBytes('\n')
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return nil, fmt.Errorf("read the events: %w", readErr)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			envelope, err := events.ParseEnvelope(line)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", number, err)
			}
			envelopes = append(envelopes, envelope)
		}
		if readErr != nil {
			return envelopes, nil
		}
	}
}

func publish(ctx context.Context, db *database.DB, envelopes []events.Envelope) (published, error) {
	done := published{EventIDs: []string{}}
	if len(envelopes) == 0 {
		return done, nil
	}
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return done, fmt.Errorf("begin the transaction: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // does nothing after the commit
	dialect := events.PostgreSQL
	if db.Dialect == database.SQLite {
		dialect = events.SQLite
	}
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: dialect, Schema: db.Schema})
	if err != nil {
		return done, err
	}
	result, err := publisher.Publish(ctx, envelopes...)
	if err != nil {
		return done, err
	}
	if err := tx.Commit(); err != nil {
		return done, fmt.Errorf("commit the events: %w", err)
	}
	return published{Published: int64(result.Inserted), Duplicates: int64(result.Duplicates), EventIDs: result.EventIDs}, nil
}
