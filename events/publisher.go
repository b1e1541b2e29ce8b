package events

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/propagation"
)

// maxRows keeps one INSERT below the 32,766 parameters that SQLite takes;
// PostgreSQL takes 65,535.
const maxRows = 32766 / columnsPerRow

// Executor is what the publisher needs of a transaction or database: *sql.Tx,
// *sql.DB, *sql.Conn and sqlx's types of these names have it, and [FromPgx]
// makes one of a pgx transaction.
type Executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// PublisherOptions say where the outbox is.
type PublisherOptions struct {
	Dialect Dialect
	// Schema is PostgreSQL's schema with Ownbucket's tables, by default
	// "ownbucket". SQLite has none.
	Schema string
}

// Publisher writes events to the outbox. It may be used by several goroutines
// where its executor may: a *sql.DB, not a transaction.
type Publisher struct {
	db     Executor
	outbox outbox
}

// NewPublisher makes a publisher that writes within tx: the events are
// published when, and only when, the caller commits.
func NewPublisher(tx Executor, options PublisherOptions) (*Publisher, error) {
	if tx == nil {
		return nil, errors.New("new publisher: no transaction or database given")
	}
	outbox, err := newOutbox(options)
	if err != nil {
		return nil, fmt.Errorf("new publisher: %w", err)
	}
	return &Publisher{db: tx, outbox: outbox}, nil
}

// Result says what became of the envelopes of one Publish.
type Result struct {
	// EventIDs are the envelopes' IDs in their order, generated ones included.
	EventIDs []string
	// Inserted envelopes are new in the outbox.
	Inserted int
	// Duplicates were there already, by their event ID, and changed nothing.
	Duplicates int
}

// Publish writes the events in their order, with the trace context of ctx.
//
// All envelopes are validated before the database is touched, so an invalid
// one (an *[InvalidError]) publishes nothing and leaves the caller's
// transaction usable. Up to 5,461 events are one INSERT; where there are more,
// only a transaction makes them one unit.
func (p *Publisher) Publish(ctx context.Context, envelopes ...Envelope) (Result, error) {
	messages := make(message.Messages, 0, len(envelopes))
	for i, envelope := range envelopes {
		msg, err := newMessage(ctx, envelope)
		if err != nil {
			return Result{}, fmt.Errorf("publish event %d of %d: %w", i+1, len(envelopes), err)
		}
		messages = append(messages, msg)
	}

	counter := &insertCounter{db: p.db}
	publisher, err := wsql.NewPublisher(counter, wsql.PublisherConfig{SchemaAdapter: p.outbox}, nil)
	if err != nil {
		return Result{}, fmt.Errorf("publish: %w", err)
	}
	published := Result{EventIDs: make([]string, 0, len(messages))}
	for chunk := range slices.Chunk(messages, maxRows) {
		if err := publisher.Publish(outboxTable, chunk...); err != nil {
			return Result{}, fmt.Errorf("publish %d events to %s: %w", len(messages), p.outbox.table, err)
		}
		for _, msg := range chunk {
			published.EventIDs = append(published.EventIDs, msg.UUID)
		}
	}
	published.Inserted = counter.inserted
	published.Duplicates = len(messages) - counter.inserted
	return published, nil
}

func newMessage(ctx context.Context, envelope Envelope) (*message.Message, error) {
	if err := envelope.Validate(); err != nil {
		return nil, err
	}
	envelope, err := envelope.identified()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(envelope.Event)
	if err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", envelope.Event.Type(), err)
	}
	msg := message.NewMessageWithContext(ctx, envelope.EventID, data)
	maps.Copy(msg.Metadata, envelope.Metadata)
	propagation.TraceContext{}.Inject(ctx, propagation.MapCarrier(msg.Metadata))
	msg.Metadata[metadataType] = envelope.Event.Type()
	msg.Metadata[metadataService] = envelope.ServiceID
	msg.Metadata[metadataEnvironment] = envelope.EnvironmentID
	return msg, nil
}

// insertCounter tells Watermill's publisher's rows from duplicates, which it
// doesn't report itself.
type insertCounter struct {
	db       Executor
	inserted int
}

func (c *insertCounter) ExecContext(ctx context.Context, query string, args ...any) (wsql.Result, error) {
	result, err := c.db.ExecContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	rows, err := result.RowsAffected()
	if err != nil {
		return nil, fmt.Errorf("count the inserted events: %w", err)
	}
	c.inserted += int(rows)
	return result, nil
}

// QueryContext is never called: only Watermill's subscriber queries.
func (c *insertCounter) QueryContext(context.Context, string, ...any) (wsql.Rows, error) {
	return nil, errPublishOnly
}
