package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
)

// columns of a table, or the names of one thing's fields.
type columns []string

// printList prints many things: JSON as one array, a table otherwise.
func printList[T any](a *app, list []T, header columns, row func(T) []string) error {
	if a.Output == "json" {
		if list == nil {
			list = []T{}
		}
		return writeJSON(a.stdout, list)
	}
	t := newTable(header)
	for _, item := range list {
		t.AppendRow(cells(row(item)))
	}
	return render(a.stdout, t)
}

// printEach prints things as one JSON array while they are found: there may be
// more than memory should hold.
func printEach[T any](a *app, each func(visit func(T) error) error) error {
	out := bufio.NewWriter(a.stdout)
	before, end := "[\n  ", "[]\n"
	err := each(func(thing T) error {
		var encoded bytes.Buffer
		if err := writeIndented(&encoded, thing, "  "); err != nil {
			return err
		}
		_, _ = out.WriteString(before)
		_, err := out.Write(bytes.TrimRight(encoded.Bytes(), "\n"))
		before, end = ",\n  ", "\n]\n"
		return err
	})
	if err == nil {
		_, err = out.WriteString(end)
	}
	return errors.Join(err, out.Flush())
}

// field is one line of a thing's table; empty ones are left out.
type field struct{ name, value string }

// printOne prints one thing: JSON as one object, a table of its fields otherwise.
func printOne(a *app, thing any, fields ...field) error {
	if a.Output == "json" {
		return writeJSON(a.stdout, thing)
	}
	t := newTable(nil)
	for _, f := range fields {
		if f.value != "" {
			t.AppendRow(table.Row{f.name, printable(f.value)})
		}
	}
	return render(a.stdout, t)
}

func writeJSON(w io.Writer, value any) error { return writeIndented(w, value, "") }

// writeIndented begins every line but the first with prefix.
func writeIndented(w io.Writer, value any, prefix string) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent(prefix, "  ")
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

func newTable(header columns) table.Writer {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft = ""
	style.Box.PaddingRight = "  "
	t.SetStyle(style)
	if header != nil {
		t.AppendHeader(cells(header))
	}
	return t
}

func render(w io.Writer, t table.Writer) error {
	lines := strings.Split(t.Render(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func cells(texts []string) table.Row {
	row := make(table.Row, len(texts))
	for i, text := range texts {
		row[i] = printable(text)
	}
	return row
}

// printable keeps what others chose, such as file names and error texts, from
// steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// shorten cuts a text for a column; one thing's own table shows all of it.
func shorten(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

func at(moment time.Time) string {
	if moment.IsZero() {
		return ""
	}
	return moment.UTC().Format("2006-01-02 15:04:05") + " UTC"
}

func maybeAt(moment *time.Time) string {
	if moment == nil {
		return ""
	}
	return at(*moment)
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// place names an environment in tables, where production has no ID.
func place(environmentID string) string {
	if environmentID == "" {
		return "(production)"
	}
	return environmentID
}

// counts is what an action answers.
type counts struct {
	Matched int64 `json:"matched"`
	Changed int64 `json:"changed"`
	Skipped int64 `json:"skipped"`
}

func (a *app) printCounts(c counts, dryRun bool) error {
	if dryRun && a.Output == "table" {
		fmt.Fprintln(a.stderr, "Nothing is changed: this is a dry run.")
	}
	return printOne(a, c, field{"matched", fmt.Sprint(c.Matched)}, field{"changed", fmt.Sprint(c.Changed)},
		field{"skipped", fmt.Sprint(c.Skipped)})
}

// limited is how long a list may be.
type limited struct {
	Limit int `default:"1000" placeholder:"N" help:"List at most so many; 0 means all (${default})."`
}

// Validate is called by the parser.
func (l limited) Validate() error {
	if l.Limit < 0 {
		return fmt.Errorf("--limit must not be negative, but is %d", l.Limit)
	}
	return nil
}

// noteCut tells people that a list may be longer than what they see.
func (a *app) noteCut(shown int, l limited) {
	if l.Limit > 0 && shown == l.Limit && a.Output == "table" {
		fmt.Fprintf(a.stderr, "The list ends after %d; --limit 0 shows all.\n", shown)
	}
}
