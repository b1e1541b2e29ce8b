package database

import (
	"regexp"
	"strings"

	"github.com/jmoiron/sqlx"
)

// maxRewritten bounds the memory that cached queries take: texts that vary
// with their arguments (sqlx.In) must not fill it.
const maxRewritten = 1024

// maxRows is more than any {rows …} has.
const maxRows = `1000000000`

var token = regexp.MustCompile(`\{[a-z_][a-z0-9_]*\}`)

// rows is a table that comes as one argument: a JSON array of objects.
var rows = regexp.MustCompile(`\{rows ([a-z_]+)\(([^)]*)\)\}`)

// laneKey is what the index of a lane's events begins with.
var laneKey = regexp.MustCompile(`\{lane_key ([a-z_]+)\}`)

// inLane is a condition that an event stands in a lane, by their aliases.
var inLane = regexp.MustCompile(`\{in_lane ([a-z_]+) ([a-z_]+)\}`)

// fragments are the places where the two dialects differ. {now} is the
// database's own clock, in microseconds since the Unix epoch; on PostgreSQL
// it moves on within a transaction, and is a subquery, which a statement reads
// once: an index can serve where a column is compared with it. {row_version}
// is that of the row of an alias i: xmin, the transaction that wrote it, on
// PostgreSQL (https://www.postgresql.org/docs/current/ddl-system-columns.html);
// SQLite has none, and 0 stands for that. {returned_e} stands before a column of the
// changed table e after RETURNING, where SQLite takes no name. {least} is the function
// that returns the least of its arguments. CAST, not "::", so that sqlx.Named may come
// before or after.
var fragments = map[Dialect]map[string]string{
	PostgreSQL: {
		"{now}":               `(SELECT CAST(extract(epoch FROM clock_timestamp()) * CAST(1000000 AS numeric) AS bigint))`,
		"{skip_locked}":       `FOR UPDATE SKIP LOCKED`,
		"{for_update}":        `FOR UPDATE`,
		"{for_key_share}":     `FOR KEY SHARE`,
		"{for_no_key_update}": `FOR NO KEY UPDATE`,
		"{uuid}":              `CAST(? AS uuid)`,
		"{in_ids}":            `= ANY (ARRAY(SELECT CAST(value AS bigint) FROM json_array_elements_text(CAST(? AS json))))`,
		"{ids}":               `(SELECT CAST(value AS bigint) FROM json_array_elements_text(CAST(? AS json)))`,
		"{row_version}":       `CAST(CAST(i.xmin AS text) AS bigint)`,
		"{returned_e}":        `e.`,
		"{least}":             `least`,
	},
	// SQLite has one writer, whose transaction begins with the write lock:
	// there is no row to lock.
	SQLite: {
		"{now}":               `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`,
		"{skip_locked}":       ``,
		"{for_update}":        ``,
		"{for_key_share}":     ``,
		"{for_no_key_update}": ``,
		"{uuid}":              `?`,
		"{in_ids}":            `IN (SELECT value FROM json_each(?))`,
		"{ids}":               `(SELECT value FROM json_each(?))`,
		"{row_version}":       `0`,
		"{returned_e}":        ``,
		"{least}":             `min`,
	},
}

// SQL turns a query as we write it into one that the database takes:
// {now}, {skip_locked}, {for_update}, {for_key_share} and {row_version} become
// the dialect's fragment, {rows v(a bigint, b text)} a table v made of one
// argument, a JSON array of objects with those fields (so that a statement
// over many rows has one text and one argument), {in_ids} a condition that a
// column is one of a JSON array of integers, {ids} a list of them, for use after
// NOT IN, {in_lane e l} a condition that event e stands in lane l, {lane_key e}
// what the index of a lane's events begins with, {uuid} an argument that is a
// UUID, any other {name} the table of that name, and each ? the dialect's
// placeholder. A query therefore holds no literal ?.
func (db *DB) SQL(query string) string {
	if done, ok := db.rewritten.Load(query); ok {
		return done.(string)
	}
	done := rows.ReplaceAllStringFunc(query, db.rows)
	done = inLane.ReplaceAllStringFunc(done, db.inLane)
	done = laneKey.ReplaceAllStringFunc(done, func(fragment string) string {
		return db.laneKey(laneKey.FindStringSubmatch(fragment)[1])
	})
	done = token.ReplaceAllStringFunc(done, func(t string) string {
		if fragment, ok := fragments[db.Dialect][t]; ok {
			return fragment
		}
		return db.table(t[1 : len(t)-1])
	})
	if db.Dialect == PostgreSQL {
		done = sqlx.Rebind(sqlx.DOLLAR, done)
	}
	if db.rewrittenCount.Load() < maxRewritten {
		if _, known := db.rewritten.LoadOrStore(query, done); !known {
			db.rewrittenCount.Add(1)
		}
	}
	return done
}

// In is a condition that a column is one of those which a query finds, to be
// put into a query. On PostgreSQL the inner query runs once, and the column is
// looked up by its index: as a semi-join, it may be planned to run, and to lock
// its rows, for each row of the outer table.
func (db *DB) In(query string) string {
	if db.Dialect == PostgreSQL {
		return `= ANY (ARRAY(` + query + `))`
	}
	return `IN (` + query + `)`
}

// Unplanned is a condition on rows that are looked up by another one. The
// planner, which doesn't see it then, can't take an index of the rows that meet
// it for the shorter way: while a table is nearly empty it looks like that, and
// the plan stays when there are a million.
func Unplanned(condition string) string {
	return `CASE WHEN ` + condition + ` THEN true ELSE false END`
}

func (db *DB) rows(fragment string) string {
	parts := rows.FindStringSubmatch(fragment)
	alias, columns := parts[1], parts[2]
	if db.Dialect == PostgreSQL {
		// The planner takes it for 100 rows, and for a tenth of them below a limit
		// that it doesn't know. It is mostly fewer, and looking each one up must be
		// cheaper than reading a table that was nearly empty when it was planned.
		return `(SELECT * FROM json_to_recordset(CAST(? AS json)) AS ` + alias + `(` + columns + `) LIMIT (SELECT ` +
			maxRows + `)) AS ` + alias
	}
	var selected []string
	for column := range strings.SplitSeq(columns, ",") {
		name := strings.Fields(column)[0]
		selected = append(selected, `json_extract(value, '$.`+name+`') AS `+name)
	}
	return `(SELECT ` + strings.Join(selected, `, `) + ` FROM json_each(?)) AS ` + alias
}

// inLane compares the names, too: two lanes may have one key.
func (db *DB) inLane(fragment string) string {
	parts := inLane.FindStringSubmatch(fragment)
	event, lane := parts[1], parts[2]
	same := event + `.service_id = ` + lane + `.service_id AND ` + event + `.environment_id = ` + lane + `.environment_id`
	if db.Dialect == SQLite {
		return `(` + same + `)`
	}
	return `(` + db.laneKey(event) + ` = ` + db.laneKey(lane) + ` AND ` + same + `)`
}

// laneKey is a hash on PostgreSQL: an index entry can't hold names of any length,
// and a publisher's INSERT must not fail for one. On SQLite it is the names.
func (db *DB) laneKey(alias string) string {
	if db.Dialect == SQLite {
		return alias + `.service_id, ` + alias + `.environment_id`
	}
	return `pg_catalog.hashtextextended(` + alias + `.service_id, pg_catalog.hashtextextended(` + alias + `.environment_id, 0))`
}

func (db *DB) table(name string) string {
	if db.Dialect == PostgreSQL {
		return `"` + db.Schema + `".` + name
	}
	return name
}
