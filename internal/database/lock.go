package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrWorkerRuns says that another process works on the same SQLite database.
var ErrWorkerRuns = errors.New("another worker runs on this SQLite database: stop it, or use PostgreSQL for several workers")

// errLocked says that another process holds the lock.
var errLocked = errors.New("locked by another process")

// lockPoll is how often a waiter looks whether a lock has become free.
const lockPoll = 50 * time.Millisecond

// lockPatience is after how long a wait for a lock is told of.
var lockPatience = 30 * time.Second

// LockWorker makes the caller the one worker process of the SQLite database
// at path (DB.Path). The lock ends with release or with the process, however
// that ends: who gets it may void the leases of the last holder.
func LockWorker(path string) (release func() error, err error) {
	release, err = lockFile(path + ".worker.lock")
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("%s: %w", path, ErrWorkerRuns)
	}
	return release, err
}

// Lock waits until no other process or goroutine holds the database's lock
// of that purpose, a name of a-z and _, for work that must not run twice at once
// and is rare. On PostgreSQL the schema must exist.
func (db *DB) Lock(ctx context.Context, purpose string) (release func() error, err error) {
	try := db.tryLock
	if db.Dialect == SQLite {
		try = func(_ context.Context, purpose string) (func() error, error) {
			return lockFile(db.Path + "." + purpose + ".lock")
		}
	} else if err := db.createLock(ctx, purpose); err != nil {
		return nil, fmt.Errorf("make the %s lock: %w", purpose, err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	impatient := time.NewTimer(lockPatience)
	defer impatient.Stop()
	for {
		release, err := try(ctx, purpose)
		if !errors.Is(err, errLocked) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the %s lock: %w", purpose, context.Cause(ctx))
		case <-impatient.C:
			if db.Waiting != nil {
				db.Waiting(purpose)
			}
		case <-tick.C:
		}
	}
}

// createLock makes the empty table that stands for the lock on PostgreSQL. An
// advisory lock is no substitute: every role that can connect may take it.
func (db *DB) createLock(ctx context.Context, purpose string) error {
	_, err := db.ExecContext(ctx, db.SQL(`CREATE TABLE IF NOT EXISTS {`+purpose+`_lock} ()`))
	switch postgresCode(err) {
	case duplicateTable, uniqueViolation: // another process made it at this moment
		return nil
	}
	return err
}

// tryLock holds the lock by an open transaction, since PgBouncer in
// transaction mode has no sessions to lock by. It asks again and again and
// never waits inside the server: a waiting statement's snapshot would make
// CREATE INDEX CONCURRENTLY wait for it, and so for its own lock.
func (db *DB) tryLock(ctx context.Context, purpose string) (release func() error, err error) {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("take the %s lock: %w", purpose, err)
	}
	_, err = tx.ExecContext(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`)
	if err == nil {
		_, err = tx.ExecContext(ctx, db.SQL(`LOCK TABLE {`+purpose+`_lock} IN EXCLUSIVE MODE NOWAIT`))
	}
	if postgresCode(err) == lockNotAvailable {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the %s lock: %w", purpose, err), tx.Rollback())
	}
	return tx.Rollback, nil
}

// lockFile takes the lock or fails with errLocked. The file stays when the
// lock is released: removing it would let two processes lock two files of
// one name.
func lockFile(name string) (release func() error, err error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), file.Close())
	}
	return file.Close, nil
}
