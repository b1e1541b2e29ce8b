package database

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
)

// oldestServer is PostgreSQL 13, in the form of server_version_num.
const oldestServer = 130000

// maxConnections bounds one process's pool. Nothing of ours holds a
// connection while it waits for AWS, so a few serve many events.
const maxConnections = 16

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// ValidateSchema refuses what can't be a schema of ours on PostgreSQL.
func ValidateSchema(name string) error {
	if !schemaName.MatchString(name) {
		return fmt.Errorf("schema name %q is not valid: use 1 to 63 of a-z, 0-9 and _, no digit first", name)
	}
	if strings.HasPrefix(name, "pg_") || name == "information_schema" {
		return fmt.Errorf("schema name %q is PostgreSQL's own: choose another", name)
	}
	return nil
}

func openPostgreSQL(ctx context.Context, url, schema string, o opening) (*DB, error) {
	if err := ValidateSchema(schema); err != nil {
		return nil, err
	}
	config, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	if err := adapt(ctx, config, o); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}

	pool := sqlx.NewDb(stdlib.OpenDB(*config), "pgx")
	pool.SetMaxOpenConns(maxConnections)
	pool.SetMaxIdleConns(maxConnections)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	// Old connections are given up so that a failover or a load balancer's
	// change reaches every one of them.
	pool.SetConnMaxLifetime(30 * time.Minute)

	db := &DB{DB: pool, Dialect: PostgreSQL, Schema: schema}
	if err := db.checkServer(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to PostgreSQL: %w", err), pool.Close())
	}
	return db, nil
}

// Connect opens a session of its own, for LISTEN. It fails with ErrPooled behind a
// pooler, which may give each transaction another one.
func Connect(ctx context.Context, url string) (*pgx.Conn, error) {
	config, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	pooled, err := lookBehind(ctx, config)
	if err == nil && pooled {
		err = ErrPooled
	}
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["search_path"] = searchPath
	return pgx.ConnectConfig(ctx, config)
}

// ErrPooled says that a URL leads to a pooler instead of the server.
var ErrPooled = errors.New("a pooler has no session of one's own")

func parseURL(url string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// The parser's words may quote the URL, and with it the password.
		return nil, errors.New("the PostgreSQL URL can't be read (its text is withheld, it may hold a password): " +
			"use postgres://USER:PASSWORD@HOST:PORT/DATABASE, special characters percent-encoded")
	}
	setDefault(config.RuntimeParams, "application_name", "ownbucket")
	setDefault(config.RuntimeParams, "client_encoding", "UTF8")
	return config, nil
}

// searchPath is that of each of our sessions. Functions and operators are then
// PostgreSQL's own, also where another role may create some in a schema that
// would else be searched: a better match of the arguments' types would run with
// our rights (https://www.postgresql.org/docs/current/ddl-schemas.html).
const searchPath = "pg_catalog"

// adapt prepares a configuration for what it leads to: the server or a pooler.
// Statements are prepared, which halves what a short one costs, where our
// connections are the server's own. PgBouncer in transaction mode gives each
// transaction another server connection: statements prepared on the last one
// would be missing, and what a session sets would be another's.
func adapt(ctx context.Context, config *pgx.ConnConfig, o opening) error {
	prepares := config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	pooled, err := lookBehind(ctx, config)
	if err != nil || pooled {
		return err
	}
	config.RuntimeParams["search_path"] = searchPath
	if !prepares {
		return nil // the URL says default_query_exec_mode
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	for name, value := range planning {
		setDefault(config.RuntimeParams, name, value)
	}
	for name, limit := range map[string]time.Duration{
		"idle_in_transaction_session_timeout": o.idleInTransaction, "lock_timeout": o.lockTimeout,
	} {
		if limit > 0 {
			setDefault(config.RuntimeParams, name, strconv.FormatInt(max(limit.Milliseconds(), 1), 10))
		}
	}
	return nil
}

// lookBehind tells whether a pooler answers. A pooler betrays itself by the process
// ID that it sends when a client connects, since it isn't the server process's. It
// passes no search_path on, so the role must have ours.
func lookBehind(ctx context.Context, config *pgx.ConnConfig) (pooled bool, err error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	var pid uint32
	var role, path string
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid(), CAST(current_user AS pg_catalog.text),
		pg_catalog.current_setting('search_path')`).Scan(&pid, &role, &path); err != nil {
		return false, err
	}
	if pid == conn.PgConn().PID() {
		return false, nil
	}
	if path != searchPath {
		return true, fmt.Errorf("role %s has search_path %q behind a pooler, so other roles' functions could run with its rights: "+
			"use a role of its own for Ownbucket, and run ALTER ROLE %s SET search_path = %s", role, path, pgx.Identifier{role}.Sanitize(), searchPath)
	}
	return true, nil
}

// planning keeps the plans of prepared statements good however the tables grow
// after they were made: each of our queries is written for an index. Without
// statistics, or while a table is nearly empty, the planner would rather read
// it from end to end, and would go on doing so: by its primary key, too, where it
// takes what a condition leaves for a row or two, unless index entries are dear.
var planning = map[string]string{
	"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off",
	"cpu_index_tuple_cost": "1",
}

func (db *DB) checkServer(ctx context.Context) error {
	var version int
	err := db.GetContext(ctx, &version, `SELECT CAST(current_setting('server_version_num') AS integer)`)
	if err != nil {
		return err
	}
	if version < oldestServer {
		return fmt.Errorf("the server is PostgreSQL %d: 13 or newer is needed", version/10000)
	}
	return nil
}

func setDefault(params map[string]string, name, value string) {
	if _, set := params[name]; !set {
		params[name] = value
	}
}
