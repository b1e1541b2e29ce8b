// Package database opens the two databases that events can wait in and
// hides what is different between them: PostgreSQL, shared by any number of
// workers, and SQLite, the embedded default.
package database

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
)

// Dialect is the kind of database behind a DB.
type Dialect string

// The dialects that every query must work in.
const (
	PostgreSQL Dialect = "postgresql"
	SQLite     Dialect = "sqlite"
)

// DefaultSchema is the PostgreSQL schema that our tables stand in unless the
// configuration names another.
const DefaultSchema = "ownbucket"

// DB is an open database. Queries are written once, in the notation of
// [DB.SQL].
//
// On SQLite there is one connection: a query made on the DB while a
// transaction or a set of rows is open in the same goroutine waits for
// itself. Use the transaction's own handle, and close rows first.
type DB struct {
	*sqlx.DB
	Dialect Dialect
	// Schema is the validated PostgreSQL schema; empty on SQLite.
	Schema string
	// Path is SQLite's file, absolute and with symbolic links resolved;
	// empty on PostgreSQL.
	Path string

	// Waiting, if set, is told once of a lock that [DB.Lock] waits for longer than
	// lockPatience.
	Waiting func(purpose string)

	rewritten      sync.Map // query as written -> query as sent
	rewrittenCount atomic.Int64
}

// Option changes how a database is opened.
type Option func(*opening)

type opening struct{ idleInTransaction, lockTimeout time.Duration }

// IdleInTransaction makes PostgreSQL end a transaction, with its connection,
// that nothing was heard of for so long: a process that stands still, or whose
// host is gone, then lets go of its locks. It has no effect on SQLite, nor
// behind a pooler, which has a limit of its own (PgBouncer's
// idle_transaction_timeout).
func IdleInTransaction(limit time.Duration) Option {
	return func(o *opening) { o.idleInTransaction = limit }
}

// LockTimeout makes a statement fail that waits for a lock of PostgreSQL's for so long:
// it would wait without a word for as long as somebody's transaction is open. It has no
// effect on SQLite, nor behind a pooler.
func LockTimeout(limit time.Duration) Option {
	return func(o *opening) { o.lockTimeout = limit }
}

// Open connects to "sqlite:PATH", "postgres://…" or "postgresql://…". The
// schema counts on PostgreSQL only. Open creates a missing SQLite file but
// no tables: that is the migrations' work.
func Open(ctx context.Context, url, schema string, options ...Option) (*DB, error) {
	var o opening
	for _, option := range options {
		option(&o)
	}
	switch {
	case url == "":
		return nil, errors.New("no database URL given: use sqlite:PATH or postgres://USER@HOST/DATABASE")
	case strings.HasPrefix(url, "sqlite:"):
		return openSQLite(ctx, strings.TrimPrefix(url, "sqlite:"))
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		return openPostgreSQL(ctx, url, schema, o)
	default:
		// The URL itself stays out of the message: it may hold a password.
		scheme, _, found := strings.Cut(url, ":")
		if !found || strings.ContainsAny(scheme, "@/= ") {
			return nil, errors.New("the database URL has no scheme: use sqlite:PATH or postgres://USER@HOST/DATABASE")
		}
		return nil, fmt.Errorf("unknown database URL scheme %q: use sqlite:PATH or postgres://USER@HOST/DATABASE", scheme)
	}
}
