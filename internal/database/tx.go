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

const (
	txAttempts = 5
	txBackoff  = 20 * time.Millisecond // doubled with each attempt, full jitter
)

// Tx runs fn in one transaction and commits it if fn returns nil. On
// PostgreSQL the transaction is READ COMMITTED, whatever the server's
// default, and one that lost to a deadlock is run again: fn may be called
// several times and must have no effect outside of tx.
func (db *DB) Tx(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	for attempt := 0; ; attempt++ {
		err := db.runTx(ctx, fn)
		if err == nil || attempt == txAttempts-1 || !lostToAnother(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(rand.N(txBackoff << attempt)):
		}
	}
}

func (db *DB) runTx(ctx context.Context, fn func(tx *sqlx.Tx) error) (err error) {
	options := &sql.TxOptions{}
	if db.Dialect == PostgreSQL {
		options.Isolation = sql.LevelReadCommitted
	}
	tx, err := db.BeginTxx(ctx, options)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	defer func() {
		// Also undoes what a panicking fn did; after a commit it does nothing.
		if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
			err = errors.Join(err, fmt.Errorf("roll back transaction: %w", rollback))
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

func lostToAnother(err error) bool {
	code := postgresCode(err)
	return code == serializationFailure || code == deadlockDetected
}

// IsTransient tells whether the same work may succeed later with nothing
// changed: the database was restarted, unreachable, overloaded or locked.
func IsTransient(err error) bool {
	if code := postgresCode(err); code != "" {
		return lostToAnother(err) ||
			strings.HasPrefix(code, "08") || // connection exception
			strings.HasPrefix(code, "53") || // insufficient resources
			strings.HasPrefix(code, "57P") || // shutdown, crash, starting up
			code == "55P03" || // lock not available
			code == "57014" || // an operator or the server's statement_timeout ended it
			code == "25P03" || // our own process stood still within a transaction
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
	return errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

func postgresCode(err error) string {
	var failed *pgconn.PgError
	if errors.As(err, &failed) {
		return failed.Code
	}
	return ""
}
