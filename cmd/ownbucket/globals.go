package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/telemetry"
	"github.com/ownbucket/ownbucket/migrations"
)

// Globals are the flags that every command takes.
type Globals struct {
	DatabaseURL string `help:"sqlite:PATH or postgres://USER@HOST/DATABASE." default:"sqlite:ownbucket.db" placeholder:"URL" env:"OWNBUCKET_DATABASE_URL"`
	Schema      string `help:"PostgreSQL schema of our tables." default:"ownbucket" env:"OWNBUCKET_SCHEMA"`
	Output      string `help:"What to print: table or json." enum:"table,json" default:"table" short:"o" env:"OWNBUCKET_OUTPUT"`
	LogFormat   string `help:"Log as text or json." enum:"text,json" default:"text" env:"OWNBUCKET_LOG_FORMAT"`
	LogLevel    string `help:"Least level to log: debug, info, warn or error." enum:"debug,info,warn,error" default:"info" env:"OWNBUCKET_LOG_LEVEL"`
	Actor       string `help:"Who acts, for the audit (default: the user's name)." placeholder:"NAME" env:"OWNBUCKET_ACTOR"`
}

// environment is what a command works with beside its own flags.
type environment struct {
	*Globals
	stdin          io.Reader
	stdout, stderr io.Writer
}

// logger logs to standard error, so that standard output stays a program's.
func (e *environment) logger() (*slog.Logger, error) {
	return telemetry.Logger(e.stderr, e.LogFormat, e.LogLevel)
}

// database opens the database, whose tables must be up to date. SQLite's are
// brought up to date here: it is one user's own file.
func (e *environment) database(ctx context.Context) (*database.DB, error) {
	db, err := database.Open(ctx, e.DatabaseURL, e.Schema)
	if err != nil {
		return nil, err
	}
	if db.Dialect == database.SQLite {
		_, err = migrations.Up(ctx, db)
	} else {
		err = migrations.Check(ctx, db)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// actor is who an audit row names.
func (e *environment) actor() string {
	if e.Actor != "" {
		return e.Actor
	}
	if current, err := user.Current(); err == nil {
		return current.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// print writes JSON, or else what asTable fills.
func (e *environment) print(value any, asTable func(table.Writer)) error {
	if e.Output == "json" {
		encoder := json.NewEncoder(e.stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	}
	t := table.NewWriter()
	t.SetOutputMirror(e.stdout)
	t.SetStyle(plain)
	asTable(t)
	t.Render()
	return nil
}

var plain = func() table.Style {
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = 0
	return style
}()

// fields prints one thing, a line for each of its fields that is known.
func fields(t table.Writer, pairs ...any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			t.AppendRow(table.Row{pairs[i], pairs[i+1]})
		}
	}
}

func clock(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format("2006-01-02 15:04:05Z")
}

func optionalClock(at *time.Time) string {
	if at == nil {
		return ""
	}
	return clock(*at)
}

// listing is the flag of every list.
type listing struct {
	Limit int `help:"How many at most; 0 means all." default:"1000"`
}

func (l listing) Validate() error {
	if l.Limit < 0 {
		return errors.New("--limit must be 0 or more")
	}
	return nil
}
