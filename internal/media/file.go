package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// openFile opens a path below the file root, raw. os.Root holds it there,
// symbolic links included.
func (s *Sources) openFile(ctx context.Context, path string) (*stream, error) {
	name := shown("file:" + path)
	switch {
	case s.options.FileRoot == "":
		return nil, refused("%s: file sources are off, since no OWNBUCKET_FILE_ROOT is set", name)
	case strings.ContainsRune(path, 0):
		return nil, refused("%s: a path can't contain a NUL byte", name)
	case !filepath.IsLocal(path):
		return nil, refused("%s: the path must be relative and stay below the file root", name)
	}
	root, err := os.OpenRoot(s.options.FileRoot)
	if err != nil {
		return nil, denied("%s: the file root can't be opened: %w", name, err)
	}
	defer root.Close()
	// Looked at before it is opened, since opening a device can do something,
	// and again afterwards, since it may have been exchanged in between.
	info, err := root.Stat(path)
	if err != nil {
		return nil, classifyFile(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(name, info)
	}
	// Without O_NONBLOCK a FIFO waits for a writer.
	file, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, classifyFile(name, err)
	}
	if info, err = file.Stat(); err != nil {
		file.Close()
		return nil, classifyFile(name, err)
	}
	if !info.Mode().IsRegular() {
		file.Close()
		return nil, notRegular(name, info)
	}
	return &stream{name: name, size: info.Size(), body: &fileBody{ctx: ctx, name: name, file: file}}, nil
}

func notRegular(name string, info fs.FileInfo) error {
	return refused("%s isn't a regular file (%s)", name, info.Mode().Type())
}

func classifyFile(name string, err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return gone("%s is not there", name)
	case errors.Is(err, fs.ErrPermission):
		return denied("%s: the worker may not read it, check the file's rights: %w", name, err)
	case !errors.As(err, &errno):
		// os.Root's own refusal has no error number and isn't exported.
		return refused("%s leaves the file root", name)
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		return refused("%s: %w", name, err)
	default:
		return unavailable("%s: %w", name, err)
	}
}

// fileBody stops when the context ends, which a file by itself doesn't.
type fileBody struct {
	ctx  context.Context
	name string
	file *os.File
}

func (b *fileBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, fmt.Errorf("reading %s: %w", b.name, contextError(b.ctx))
	}
	n, err := b.file.Read(p)
	if err != nil && err != io.EOF {
		return n, unavailable("%s broke off: %w", b.name, err)
	}
	return n, err
}

func (b *fileBody) Close() error { return b.file.Close() }
