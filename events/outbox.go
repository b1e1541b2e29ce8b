package events

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
)

// Dialect is the database's kind of SQL.
type Dialect int

const (
	// PostgreSQL is version 13 or newer.
	PostgreSQL Dialect = iota + 1
	// SQLite is Ownbucket's embedded default.
	SQLite
)

const (
	outboxTable   = "outbox"
	defaultSchema = "ownbucket"
	columnsPerRow = 6

	metadataType        = metadataReserved + "type"
	metadataService     = metadataReserved + "service-id"
	metadataEnvironment = metadataReserved + "environment-id"
)

// schemaName admits what is the same name quoted and unquoted.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

var errPublishOnly = errors.New("the outbox is consumed by Ownbucket's worker, not through this adapter")

// outbox is the SchemaAdapter that makes watermill-sql's publisher write rows
// of the outbox table.
type outbox struct {
	table   string
	dialect Dialect
}

var _ wsql.SchemaAdapter = outbox{}

func newOutbox(options PublisherOptions) (outbox, error) {
	schema := options.Schema
	if schema == "" {
		schema = defaultSchema
	}
	if !schemaName.MatchString(schema) {
		return outbox{}, fmt.Errorf("schema %s: want 1 to 63 of a-z, 0-9 and _, no digit first", quote(schema))
	}
	switch options.Dialect {
	case PostgreSQL:
		return outbox{table: `"` + schema + `".` + outboxTable, dialect: PostgreSQL}, nil
	case SQLite:
		return outbox{table: outboxTable, dialect: SQLite}, nil
	default:
		return outbox{}, fmt.Errorf("dialect %d: want events.PostgreSQL or events.SQLite", options.Dialect)
	}
}

// InsertQuery writes all messages in one statement that leaves what is there
// already as it is.
func (o outbox) InsertQuery(params wsql.InsertQueryParams) (wsql.Query, error) {
	var query strings.Builder
	query.WriteString("INSERT INTO " + o.table +
		" (event_id, type, service_id, environment_id, data, metadata) VALUES ")
	args := make([]any, 0, len(params.Msgs)*columnsPerRow)
	for i, msg := range params.Msgs {
		metadata := maps.Clone(msg.Metadata)
		maps.DeleteFunc(metadata, func(key, _ string) bool { return strings.HasPrefix(key, metadataReserved) })
		encoded, err := json.Marshal(metadata)
		if err != nil {
			return wsql.Query{}, fmt.Errorf("write metadata of event %s as JSON: %w", msg.UUID, err)
		}
		if i > 0 {
			query.WriteString(", ")
		}
		o.writePlaceholders(&query, len(args))
		// JSON goes as text: some drivers send bytes as bytea.
		args = append(args, msg.UUID, msg.Metadata[metadataType], msg.Metadata[metadataService],
			msg.Metadata[metadataEnvironment], string(msg.Payload), string(encoded))
	}
	query.WriteString(" ON CONFLICT (event_id) DO NOTHING")
	return wsql.Query{Query: query.String(), Args: args}, nil
}

func (o outbox) writePlaceholders(query *strings.Builder, offset int) {
	if o.dialect == SQLite {
		query.WriteString("(?, ?, ?, ?, ?, ?)")
		return
	}
	separator := "($"
	for column := 1; column <= columnsPerRow; column++ {
		query.WriteString(separator + strconv.Itoa(offset+column))
		separator = ", $"
	}
	query.WriteString(")")
}

// The rest of the adapter is for Watermill's own subscriber and for creating
// tables; migrations and the worker's subscriber do both here.

func (outbox) SelectQuery(wsql.SelectQueryParams) (wsql.Query, error) {
	return wsql.Query{}, errPublishOnly
}

func (outbox) UnmarshalMessage(wsql.UnmarshalMessageParams) (wsql.Row, error) {
	return wsql.Row{}, errPublishOnly
}

func (outbox) SchemaInitializingQueries(wsql.SchemaInitializingQueriesParams) ([]wsql.Query, error) {
	return nil, errPublishOnly
}

func (outbox) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelDefault }
