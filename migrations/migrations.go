// Package migrations holds the tables' SQL and brings a database up to it.
package migrations

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"

	"github.com/ownbucket/ownbucket/internal/database"
)

// versionTable is where goose notes what was applied; it stands among our
// other tables.
const versionTable = "schema_migrations"

var (
	// ErrOutdated says that migrations of this program are yet to be applied.
	ErrOutdated = errors.New("the database's tables are older than this program: run `ownbucket migrate up`")
	// ErrTooNew says that a newer program has changed the tables.
	ErrTooNew = errors.New("the database's tables are newer than this program: install the newer ownbucket")
)

// Migration is one numbered step and whether the database has it.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

// Applied is a step that Up has just taken.
type Applied struct {
	Version  int64
	Name     string
	Duration time.Duration
}

// Up applies what is missing, in order, each step in a transaction of its
// own, and creates PostgreSQL's schema first. Several processes may call it
// at once: one works, the others wait and find nothing left to do.
func Up(ctx context.Context, db *database.DB) (applied []Applied, err error) {
	if err := Check(ctx, db); !errors.Is(err, ErrOutdated) {
		return nil, err // nothing to do, or nothing that may be done
	}
	if err := createSchema(ctx, db); err != nil {
		return nil, err
	}
	release, err := db.Lock(ctx, versionTable)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := Check(ctx, db); !errors.Is(err, ErrOutdated) {
		return nil, err // another process has done it meanwhile
	}
	provider, err := newProvider(db)
	if err != nil {
		return nil, err
	}
	results, err := provider.Up(ctx)
	var partial *goose.PartialError
	if errors.As(err, &partial) {
		results = partial.Applied
		err = fmt.Errorf("apply migration %s: %w", path.Base(partial.Failed.Source.Path), partial.Err)
	}
	for _, result := range results {
		applied = append(applied, Applied{
			Version:  result.Source.Version,
			Name:     path.Base(result.Source.Path),
			Duration: result.Duration,
		})
	}
	return applied, err
}

// Status lists this program's migrations in order. It changes nothing, and
// needs no table to exist.
func Status(ctx context.Context, db *database.DB) ([]Migration, error) {
	applied, err := appliedVersions(ctx, db)
	if err != nil {
		return nil, err
	}
	known, err := knownMigrations(db)
	for i := range known {
		known[i].Applied = slices.Contains(applied, known[i].Version)
	}
	return known, err
}

// Check is ErrOutdated or ErrTooNew where the tables aren't this program's.
func Check(ctx context.Context, db *database.DB) error {
	applied, err := appliedVersions(ctx, db)
	if err != nil {
		return err
	}
	known, err := knownMigrations(db)
	if err != nil {
		return err
	}
	if newest := known[len(known)-1].Version; slices.ContainsFunc(applied, func(v int64) bool { return v > newest }) {
		return ErrTooNew
	}
	for _, migration := range known {
		if !slices.Contains(applied, migration.Version) {
			return ErrOutdated
		}
	}
	return nil
}

func createSchema(ctx context.Context, db *database.DB) error {
	if db.Dialect != database.PostgreSQL {
		return nil
	}
	exists, err := schemaExists(ctx, db)
	// CREATE SCHEMA IF NOT EXISTS wants the right to create one even where
	// the schema exists; an administrator may have made it for us.
	if err == nil && !exists {
		if _, err = db.ExecContext(ctx, `CREATE SCHEMA `+quote(db.Schema)); err != nil {
			if made, _ := schemaExists(ctx, db); made {
				return nil // by another process at this moment
			}
		}
	}
	if err != nil {
		return fmt.Errorf("create schema %s: %w", db.Schema, err)
	}
	return nil
}

func schemaExists(ctx context.Context, db *database.DB) (exists bool, err error) {
	err = db.GetContext(ctx, &exists, `SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)`, db.Schema)
	return exists, err
}

func newProvider(db *database.DB) (*goose.Provider, error) {
	source, err := sources(db)
	if err != nil {
		return nil, err
	}
	dialect := goose.DialectPostgres
	if db.Dialect == database.SQLite {
		dialect = goose.DialectSQLite3
	}
	base, err := goosedb.NewStore(dialect, db.SQL(`{`+versionTable+`}`))
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectCustom, db.DB.DB, source,
		goose.WithStore(store{base, db}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	return provider, nil
}

// store is goose's own, except that it finds its table in a schema whose
// name must be quoted.
type store struct {
	goosedb.Store
	db *database.DB
}

func (s store) TableExists(ctx context.Context, conn goosedb.DBTxConn) (bool, error) {
	query, args := versionTableExists(s.db)
	var exists bool
	err := conn.QueryRowContext(ctx, query, args...).Scan(&exists)
	return exists, err
}

func versionTableExists(db *database.DB) (query string, args []any) {
	if db.Dialect == database.SQLite {
		return `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?)`, []any{versionTable}
	}
	return `SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = $2)`,
		[]any{db.Schema, versionTable}
}

// appliedVersions reads goose's table without creating it, as goose would.
func appliedVersions(ctx context.Context, db *database.DB) ([]int64, error) {
	query, args := versionTableExists(db)
	var exists bool
	if err := db.GetContext(ctx, &exists, query, args...); err != nil || !exists {
		return nil, wrap(err)
	}
	var versions []int64
	err := db.SelectContext(ctx, &versions, db.SQL(`SELECT version_id FROM {`+versionTable+`}`))
	return versions, wrap(err)
}

func wrap(err error) error {
	if err != nil {
		return fmt.Errorf("read the applied migrations: %w", err)
	}
	return nil
}

func knownMigrations(db *database.DB) ([]Migration, error) {
	source, err := sources(db)
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(source, "*.sql")
	if err != nil {
		return nil, err
	}
	known := make([]Migration, len(names))
	for i, name := range names {
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("migration %s: its name must begin with a number: %w", name, err)
		}
		known[i] = Migration{Version: version, Name: name}
	}
	slices.SortFunc(known, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	return known, nil
}
