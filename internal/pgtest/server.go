package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ownbucket/ownbucket/internal/tether"
)

const superuser = "postgres"

var errNotInstalled = errors.New("PostgreSQL's server was not found in $PGBIN, on PATH or in /usr/lib/postgresql: run make deps")

// Server is a PostgreSQL server that ends with the process that started it.
type Server struct {
	mu        sync.Mutex
	directory string          // of the data, the log and the socket
	process   *tether.Process // ends with ours
}

// settings of every server. The socket in a directory of its own needs no
// port that another process could take.
var settings = []string{"listen_addresses=", "max_connections=200", "log_min_messages=warning"}

// forTests trade safety that tests don't need for speed.
var forTests = []string{
	"shared_buffers=64MB", "fsync=off", "synchronous_commit=off", "full_page_writes=off",
	"wal_level=minimal", "max_wal_senders=0", "deadlock_timeout=200ms",
}

// Start starts a server with these settings, as "name=value". What a test
// needs is URL or Clone; benchmarks have no testing.TB, and call Stop.
func Start(extra ...string) (*Server, error) { return start(false, extra...) }

func start(respawn bool, extra ...string) (*Server, error) {
	programs, err := findPrograms()
	if err != nil {
		return nil, err
	}
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	directory, err := makeDirectory(owner)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(directory, "data")

	initialize := exec.Command(filepath.Join(programs, "initdb"), "--pgdata", data,
		"--username", superuser, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	initialize.Dir = directory
	initialize.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if output, err := initialize.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("initdb: %w\n%s", err, output), os.RemoveAll(directory))
	}

	args := []string{filepath.Join(programs, "postgres"), "-D", data, "-k", directory}
	for _, setting := range slices.Concat(settings, extra) {
		args = append(args, "-c", setting)
	}
	process, err := tether.Start(tether.Server{
		Args: args, Directory: directory, StopSignal: "QUIT", RemoveDirectory: true, Credential: owner,
		Respawn: respawn,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(directory))
	}
	s := &Server{directory: directory, process: process}
	if err := s.await(); err != nil {
		return nil, errors.Join(err, process.Stop())
	}
	return s, nil
}

func (s *Server) await() error {
	return s.process.WaitUntil(time.Minute, func() error { return s.admin(`SELECT 1`) })
}

// Stop ends the server and removes its databases.
func (s *Server) Stop() error { return s.process.Stop() }

// findPrograms returns the directory of postgres and initdb, the newest
// version's where several are installed.
func findPrograms() (string, error) {
	var candidates []string
	if set := os.Getenv("PGBIN"); set != "" {
		candidates = append(candidates, set)
	}
	if onPath, err := exec.LookPath("postgres"); err == nil {
		if resolved, err := filepath.EvalSymlinks(onPath); err == nil {
			candidates = append(candidates, filepath.Dir(resolved))
		}
	}
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(installed, func(a, b string) int { return majorVersion(b) - majorVersion(a) })
	for _, directory := range append(candidates, installed...) {
		_, errPostgres := os.Stat(filepath.Join(directory, "postgres"))
		_, errInitdb := os.Stat(filepath.Join(directory, "initdb"))
		if errPostgres == nil && errInitdb == nil {
			return directory, nil
		}
	}
	return "", errNotInstalled
}

// majorVersion reads 15 from /usr/lib/postgresql/15/bin.
func majorVersion(bin string) int {
	number, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return number
}

// unprivileged is whom the server runs as: PostgreSQL refuses to be root.
// It is nil, ourselves, where we aren't root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(account.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(account.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")
}

func makeDirectory(owner *syscall.Credential) (string, error) {
	parent := os.TempDir()
	if owner != nil && !traversable(parent) {
		parent = "/tmp" // a temporary directory below /root is closed to others
	}
	directory, err := os.MkdirTemp(parent, "pgtest")
	if err != nil || owner == nil {
		return directory, err
	}
	return directory, os.Chown(directory, int(owner.Uid), int(owner.Gid))
}

func traversable(directory string) bool {
	for ; ; directory = filepath.Dir(directory) {
		info, err := os.Stat(directory)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if directory == filepath.Dir(directory) {
			return true
		}
	}
}
