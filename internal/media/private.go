package media

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// checkPrivate refuses a file root that holds the database or the spool: an
// event could send either to a customer's bucket.
func (o Options) checkPrivate() error {
	if o.FileRoot == "" {
		return nil
	}
	root, err := os.Stat(o.FileRoot)
	if err != nil {
		return fmt.Errorf("media: the file root can't be used: %w", err)
	}
	for _, private := range []struct{ what, path, setting string }{
		{"database", o.Database, "OWNBUCKET_DATABASE_URL"},
		{"spool directory", cmp.Or(o.SpoolDir, os.TempDir()), "OWNBUCKET_SPOOL_DIR"},
	} {
		inside, err := holds(root, private.path)
		if err != nil {
			return fmt.Errorf("media: look where the %s is: %w", private.what, err)
		}
		if inside {
			return fmt.Errorf("media: the file root %q holds the %s %q, which events could send to a customer's bucket: "+
				"choose another OWNBUCKET_FILE_ROOT or %s", o.FileRoot, private.what, private.path, private.setting)
		}
	}
	return nil
}

// holds tells whether a path, once symbolic links are resolved, is the root or
// below it. Directories are compared by identity, since one may have several
// names.
func holds(root fs.FileInfo, path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	path, err := filepath.Abs(path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a default that this machine doesn't have
	}
	for err == nil {
		var info fs.FileInfo
		if info, err = os.Stat(path); err == nil && os.SameFile(info, root) {
			return true, nil
		}
		parent := filepath.Dir(path)
		if parent == path {
			break
		}
		path = parent
	}
	return false, err
}
