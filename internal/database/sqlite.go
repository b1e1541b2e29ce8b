package database

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/jmoiron/sqlx"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// sqliteOptions: WAL lets publishers in other processes write while we read.
// synchronous=FULL syncs the log at every commit: with NORMAL, a power cut
// could take back an event whose publisher was told that it is committed.
// Transactions take the write lock when they begin, so that none fails half
// way because another process wrote first.
var sqliteOptions = url.Values{
	"_busy_timeout": {"10000"}, // ms
	"_foreign_keys": {"on"},
	"_journal_mode": {"WAL"},
	"_synchronous":  {"FULL"},
	"_txlock":       {"immediate"},
	"_dqs":          {"false"},
	"_error_rc":     {"true"},
}

func openSQLite(ctx context.Context, path string) (*DB, error) {
	path, err := createFile(path)
	if err != nil {
		return nil, fmt.Errorf("open SQLite database: %w", err)
	}
	// The URI form, percent-encoded, lets a file name hold ?, # and %.
	dsn := "file://" + (&url.URL{Path: path}).EscapedPath() + "?" + sqliteOptions.Encode()
	pool, err := sqlx.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	// One connection: SQLite has one writer, and waiting in Go's queue is
	// fair where waiting for SQLite's lock is not.
	pool.SetMaxOpenConns(1)
	pool.SetMaxIdleConns(1)
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), pool.Close())
	}
	return &DB{DB: pool, Dialect: SQLite, Path: path}, nil
}

// createFile makes the file if it is missing, readable by its owner alone
// since it holds customers' external IDs, and returns its one true name, so
// that all who open it share one worker lock.
func createFile(path string) (string, error) {
	if path == "" || strings.HasPrefix(path, ":memory:") {
		return "", errors.New("a file name is needed, as in sqlite:ownbucket.db: events must outlive the process")
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: create its directory first", err)
	case err != nil:
		return "", err
	}
	if err := file.Close(); err != nil {
		return "", err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(absolute)
}
