package media_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/media"
)

func TestAFileRootThatHoldsTheDatabaseOrTheSpoolIsRefused(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, filepath.FromSlash(name)) }
	for _, directory := range []string{"root/in/deep", "beside", "rootfoo"} {
		if err := os.MkdirAll(at(directory), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"root/own.db", "root/in/own.db", "beside/own.db", "rootfoo/own.db"} {
		write(t, at(file), "settings")
	}
	for name, target := range map[string]string{
		"link": "root", "beside/link.db": at("root/in/own.db"), "beside/link": "../root/in", "root/out": "../beside", "root/out.db": "../beside/own.db",
	} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		root, database, spool string
		holds                 string // empty: nothing
	}{
		{"root", "root/own.db", "beside", "database"},
		{"root", "root/in/own.db", "beside", "database"},
		{"link", "root/own.db", "beside", "database"},
		{"root", "link/in/own.db", "beside", "database"},
		{"root", "beside/link.db", "beside", "database"},
		{"root/../link/in", "beside/link/own.db", "beside", "database"},
		{"", "root/own.db", "beside", "database"},
		{"root", "beside/own.db", "root", "spool"},
		{"root", "beside/own.db", "root/in/deep", "spool"},
		{"link", "beside/own.db", "beside/link", "spool"},
		{"root", "beside/own.db", "beside", ""},
		{"root", "root/out.db", "beside", ""}, // which os.Root doesn't follow
		{"root", "root/out/own.db", "root/out", ""},
		{"root", "rootfoo/own.db", "rootfoo", ""},
		{"root/in/deep", "root/in/own.db", "root/in", ""},
	} {
		_, err := media.New(media.Options{FileRoot: at(c.root), Database: at(c.database), SpoolDir: at(c.spool)})
		if (err == nil) != (c.holds == "") || err != nil && !strings.Contains(err.Error(), "holds the "+c.holds) {
			t.Errorf("root %q, database %q, spool %q: %v; want it to hold %q", c.root, c.database, c.spool, err, c.holds)
		}
	}
	if _, err := media.New(media.Options{FileRoot: os.TempDir()}); err == nil {
		t.Error("the default spool directory may be the file root")
	}
}

func TestARelativeDatabaseIsFoundBelowTheFileRoot(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "own.db", "settings")
	if _, err := media.New(media.Options{FileRoot: ".", Database: "own.db", SpoolDir: t.TempDir()}); err == nil {
		t.Error("no error")
	}
}
