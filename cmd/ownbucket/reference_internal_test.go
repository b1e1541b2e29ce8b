package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the generated parts of docs/operating.md anew")

const manual = "../../docs/operating.md"

// generated are the parts of the manual that are made of the command line, by
// the name in their markers.
var generated = map[string]func(*kong.Application) string{
	"configuration": configurationTable,
	"commands":      commandReference,
}

func TestOperatingManualMatchesTheCommandLine(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	want := string(written)
	for name, generate := range generated {
		part := regexp.MustCompile(`(?s)(<!-- begin ` + name + ` -->\n).*(<!-- end ` + name + ` -->)`)
		if !part.MatchString(want) {
			t.Fatalf("%s lacks the markers of the part %q", manual, name)
		}
		want = part.ReplaceAllStringFunc(want, func(found string) string {
			markers := part.FindStringSubmatch(found)
			return markers[1] + generate(parser.Model) + markers[2]
		})
	}
	if *update {
		if err := os.WriteFile(manual, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(written)); diff != "" {
		t.Errorf("the manual differs from the program (-program +manual); "+
			"go test ./cmd/ownbucket -run Manual -update mends it:\n%s", diff)
	}
}

func TestEveryConfigurationFlagHasAVariableOfItsName(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range configurationFlags(parser.Model) {
		want := "OWNBUCKET_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		if diff := cmp.Diff([]string{want}, flag.Envs); diff != "" {
			t.Errorf("--%s: %s", flag.Name, diff)
		}
	}
}

// configurationFlags are the flags in the groups of that name.
func configurationFlags(app *kong.Application) []*kong.Flag {
	var found []*kong.Flag
	_ = kong.Visit(app, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok && flag.Group != nil && flag.Group.Key != "filter" {
			found = append(found, flag)
		}
		return next(nil)
	})
	return found
}

func configurationTable(app *kong.Application) string {
	var table strings.Builder
	table.WriteString("| variable | flag | of | default | meaning |\n|---|---|---|---|---|\n")
	for _, flag := range configurationFlags(app) {
		of := "all commands"
		if flag.Group.Key == "worker" {
			of = "`worker`"
		}
		fallback := ""
		if flag.Default != "" {
			fallback = "`" + flag.Default + "`"
		}
		help := strings.Replace(flag.Help, " ("+flag.Default+")", "", 1)
		fmt.Fprintf(&table, "| `%s` | `--%s` | %s | %s | %s |\n", flag.Envs[0], flag.Name, of, fallback, help)
	}
	return table.String()
}

func commandReference(app *kong.Application) string {
	var text strings.Builder
	for _, command := range app.Leaves(true) {
		fmt.Fprintf(&text, "### `ownbucket %s`\n\n%s\n", command.Path(), command.Help)
		if detail, examples, _ := cutExamples(command.Detail); detail != "" || examples != "" {
			if detail != "" {
				fmt.Fprintf(&text, "\n%s\n", strings.ReplaceAll(detail, "\n", " "))
			}
			fmt.Fprintf(&text, "\n```sh\n%s\n```\n", examples)
		}
		var lines []string
		for _, argument := range command.Positional {
			lines = append(lines, fmt.Sprintf("- `%s`: %s\n", argument.Summary(), argument.Help))
		}
		for _, flag := range command.Flags {
			if flag.Group == nil || flag.Group.Key == "filter" {
				lines = append(lines, fmt.Sprintf("- `--%s`%s: %s\n", withValue(flag), required(flag), flag.Help))
			}
		}
		if len(lines) > 0 {
			text.WriteString("\n" + strings.Join(lines, ""))
		}
		text.WriteString("\n")
	}
	return text.String()
}

// cutExamples parts a command's explanation from its examples.
func cutExamples(detail string) (explanation, examples string, found bool) {
	parts := regexp.MustCompile(`(?m)^Examples?:\n`).Split(detail, 2)
	if len(parts) < 2 {
		return strings.ReplaceAll(strings.TrimSpace(detail), "\n\n", "\n"), "", false
	}
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(parts[1], "\n"), "\n") {
		lines = append(lines, strings.TrimPrefix(line, "  "))
	}
	return strings.TrimSpace(parts[0]), strings.Join(lines, "\n"), true
}

func withValue(flag *kong.Flag) string {
	if flag.IsBool() && flag.PlaceHolder == "" {
		return flag.Name
	}
	if flag.IsBool() {
		return flag.Name + "[=" + flag.PlaceHolder + "]"
	}
	return flag.Name + "=" + flag.FormatPlaceHolder()
}

func required(flag *kong.Flag) string {
	if flag.Required {
		return " (required)"
	}
	return ""
}

func TestEveryCommandTeachesByExample(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(true) {
		_, examples, _ := cutExamples(command.Detail)
		if !strings.Contains(examples, "ownbucket "+command.Path()) {
			t.Errorf("the help of %q has no example of it", command.Path())
		}
	}
}
