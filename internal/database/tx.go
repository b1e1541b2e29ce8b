package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jmoiron/sqlx"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// PostgreSQL's codes for a transaction that lost against another and may be
// run again as it is (Appendix A of its manual).
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
)

// Codes of other errors that are told apart.
const (
	lockNotAvailable = "55P03"
	duplicateTable   = "42P07"
	uniqueViolation  = "23505"
)

// stoodStill: idle_in_transaction_session_timeout ended a session of ours.
const stoodStill = "25P03"

const (
	txAttempts = 5
	txBackoff  = 20 * time.Millisecond // doubled with each attempt, full jitter
)

// Tx runs fn in one transaction and commits it if fn returns nil. On
// PostgreSQL the transaction is READ COMMITTED, whatever the server's
// default, and one that lost to a deadlock is run again, as is one that lost its
// connection before it was committed: fn may be called several times and must have
// no effect outside of tx.
func (db *DB) Tx(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	for attempt := 0; ; attempt++ {
		committing, err := db.runTx(ctx, fn)
		again := lostToAnother(err) || !committing && lostConnection(err)
		if err == nil || attempt == txAttempts-1 || !again {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(rand.N(txBackoff << attempt)):
		}
	}
}

// runTx tells with an error whether the transaction may have been committed.
func (db *DB) runTx(ctx context.Context, fn func(tx *sqlx.Tx) error) (committing bool, err error) {
	options := &sql.TxOptions{}
	if db.Dialect == PostgreSQL {
		options.Isolation = sql.LevelReadCommitted
	}
	tx, err := db.BeginTxx(ctx, options)
	if err != nil {
		return false, fmt.Errorf("begin transaction: %w", err)
	}
	defer func() {
		// Also undoes what a panicking fn did; after a commit it does nothing.
		if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
			err = errors.Join(err, fmt.Errorf("roll back transaction: %w", rollback))
		}
	}()
	if err := fn(tx); err != nil {
		return false, err
	}
	if err := tx.Commit(); err != nil {
		return true, fmt.Errorf("commit transaction: %w", err)
	}
	return true, nil
}

func lostToAnother(err error) bool {
	code := postgresCode(err)
	return code == serializationFailure || code == deadlockDetected
}

// lostConnection tells whether the server, or the way to it, ended the session:
// where our own process stood still for too long within a transaction, too. A server
// that can't be reached is another thing.
func lostConnection(err error) bool {
	if code := postgresCode(err); code != "" {
		return code == stoodStill || strings.HasPrefix(code, "57P") // shutdown, crash, starting up
	}
	var broken *net.OpError
	return errors.As(err, &broken) && broken.Op != "dial" || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}

// IsTransient tells whether the same work may succeed later with nothing
// changed: the database was restarted, unreachable, overloaded or locked.
func IsTransient(err error) bool {
	if code := postgresCode(err); code != "" {
		return lostToAnother(err) || lostConnection(err) ||
			strings.HasPrefix(code, "08") || // connection exception
			strings.HasPrefix(code, "53") || // insufficient resources
			code == lockNotAvailable ||
			code == "57014" || // an operator or the server's statement_timeout ended it
			code == "25006" // read-only transaction: a failover in progress
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		primary := lite.Code() & 0xff // extended codes keep it in the low byte
		return primary == sqlite3.SQLITE_BUSY || primary == sqlite3.SQLITE_LOCKED ||
			primary == sqlite3.SQLITE_FULL || primary == sqlite3.SQLITE_IOERR
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return lostConnection(err) || errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, sql.ErrConnDone)
}

func postgresCode(err error) string {
	var failed *pgconn.PgError
	if errors.As(err, &failed) {
		return failed.Code
	}
	return ""
}
