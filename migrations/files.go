package migrations

import (
	"embed"
	"io"
	"io/fs"
	"strings"

	"github.com/ownbucket/ownbucket/internal/database"
)

//go:embed postgres/*.sql sqlite/*.sql
var files embed.FS

// sources are the dialect's files with the schema's name filled in:
// {schema} as a quoted identifier, {schema_name} as bare text.
func sources(db *database.DB) (fs.FS, error) {
	directory := "postgres"
	if db.Dialect == database.SQLite {
		directory = "sqlite"
	}
	dialect, err := fs.Sub(files, directory)
	return filled{dialect, strings.NewReplacer("{schema}", quote(db.Schema), "{schema_name}", db.Schema)}, err
}

type filled struct {
	fs.FS
	names *strings.Replacer
}

func (f filled) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil {
		return nil, err
	}
	if _, isDirectory := file.(fs.ReadDirFile); isDirectory {
		return file, nil
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	return filledFile{file, strings.NewReader(f.names.Replace(string(text)))}, nil
}

type filledFile struct {
	fs.File
	text *strings.Reader
}

func (f filledFile) Read(p []byte) (int, error) { return f.text.Read(p) }
