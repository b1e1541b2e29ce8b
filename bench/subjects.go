package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// subject is what a user could pick.
type subject struct {
	name  string
	limit string // what limits its throughput
	// create makes a database with the subject's tables.
	create func(ctx context.Context, e *environment) (url string, err error)
	// insert publishes events from..to, to included, spread over the lanes.
	insert func(ctx context.Context, conn *pgx.Conn, from, to, lanes int) error
	// publish publishes one event in the caller's transaction.
	publish func(ctx context.Context, tx pgx.Tx, mediaID string) error
	// consume runs until the context ends, with all slots. It calls done when
	// events are completed: in the database, or about to commit.
	consume func(ctx context.Context, url string, handle func(mediaID string), done func(int)) error
}

// fill publishes in transactions of some size, as publishers do.
func fill(ctx context.Context, url string, s subject, events, lanes int) error {
	const batch = 10_000
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", s.name, err)
	}
	defer conn.Close(ctx)
	for from := 1; from <= events; from += batch {
		if err := s.insert(ctx, conn, from, min(from+batch-1, events), lanes); err != nil {
			return fmt.Errorf("publish to %s: %w", s.name, err)
		}
	}
	// What autovacuum would do in a minute, and no checkpoint of these writes
	// while others are measured.
	for _, statement := range []string{`ANALYZE`, `CHECKPOINT`} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// holdTransaction leaves a transaction with a snapshot open until the
// scenario's end: no row that dies meanwhile can be vacuumed.
func holdTransaction(ctx context.Context, e *environment, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("hold a transaction open: %w", err)
	}
	e.cleanUp(func() error { return conn.Close(context.WithoutCancel(ctx)) })
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return fmt.Errorf("hold a transaction open: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT txid_current()`); err != nil {
		return fmt.Errorf("hold a transaction open: %w", err)
	}
	return nil
}
