package events

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// PgxExecutor is what [FromPgx] needs: pgx.Tx, *pgx.Conn and *pgxpool.Pool
// have it.
type PgxExecutor interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}

// FromPgx lets a publisher write within a transaction of pgx's own interface.
func FromPgx(tx PgxExecutor) Executor { return pgxAdapter{tx} }

type pgxAdapter struct{ tx PgxExecutor }

func (a pgxAdapter) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	tag, err := a.tx.Exec(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgxResult{tag}, nil
}

type pgxResult struct{ tag pgconn.CommandTag }

func (r pgxResult) RowsAffected() (int64, error) { return r.tag.RowsAffected(), nil }

func (pgxResult) LastInsertId() (int64, error) {
	return 0, errors.New("PostgreSQL has no last insert ID")
}
