// Package tether runs servers for tests that end with the process that
// started them, however it ends: SIGKILL, a panic, go test's time limit.
package tether

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Server says what to run.
type Server struct {
	Args []string // the program and its arguments
	Env  []string // the whole environment; nil is our own
	// Directory is where it runs, and holds its output in the file "log".
	Directory string
	// StopSignal is as kill(1) names it, such as TERM.
	StopSignal string
	// RemoveDirectory removes Directory when the server has ended.
	RemoveDirectory bool
	// Respawn starts it again whenever it ends by itself, as a service manager
	// does. StopSignal then can't be KILL.
	Respawn bool
	// Credential is whom to run as; nil is ourselves.
	Credential *syscall.Credential
}

// ErrEnded says that the server ended before anybody asked it to.
var ErrEnded = errors.New("the server ended by itself")

// Process is a running server.
type Process struct {
	keeper *exec.Cmd
	// The kernel closes our end when we end, and the keeper's when it ends.
	alive, ended *os.File
	log          string
	pid          string // the file with the process ID of what is respawned
}

// keeper stops the server when its standard input closes. What it shares
// with the server must not keep the pipes open, hence the closed 3 and 4.
const keeper = `signal=$1 remove=$2; shift 2
exec 4<&0
"$@" </dev/null 3>&- 4<&- &
server=$!
{ read -r _ <&4; kill -"$signal" $server; } 3>&- &
reader=$!
wait $server; status=$?
kill $reader 2>/dev/null
[ -z "$remove" ] || rm -rf "$remove"
exit $status`

// respawner stands in for the server. A shell's background jobs ignore some
// signals, so that TERM tells it to pass on the one that the server wants: more
// than once, since the server may not have begun to listen to it.
const respawner = `signal=$1; shift
trap 'while kill -"$signal" $server 2>/dev/null; do sleep 0.1; done; exit' TERM
while :; do
	"$@" & server=$!
	echo $server >pid
	wait $server
	sleep 0.1
done`

// Start returns as soon as the server runs; whether it answers yet is the
// caller's to find out.
func Start(server Server) (*Process, error) {
	p := &Process{log: server.Directory + "/log", pid: server.Directory + "/pid"}
	if server.Respawn {
		server.Args = append([]string{"/bin/sh", "-c", respawner, "respawner", server.StopSignal}, server.Args...)
		server.StopSignal = "TERM"
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	stdin, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	ended, lifeline, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, alive.Close())
	}
	defer lifeline.Close()

	remove := ""
	if server.RemoveDirectory {
		remove = server.Directory
	}
	p.alive, p.ended = alive, ended
	p.keeper = exec.Command("/bin/sh", append([]string{"-c", keeper, "keeper", server.StopSignal, remove}, server.Args...)...)
	p.keeper.Env, p.keeper.Dir = server.Env, server.Directory
	p.keeper.Stdin, p.keeper.ExtraFiles = stdin, []*os.File{lifeline}
	// A file of its own: `go test` would wait for whoever holds ours.
	p.keeper.Stdout, p.keeper.Stderr = log, log
	// A group of its own: Ctrl-C must leave the keeper to clean up.
	p.keeper.SysProcAttr = &syscall.SysProcAttr{Credential: server.Credential, Setpgid: true}
	if err := p.keeper.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", server.Args[0], err), p.close())
	}
	return p, nil
}

// WaitUntil asks ready again and again until it answers nil; it gives up
// when patience or, with ErrEnded, the server has ended.
func (p *Process) WaitUntil(patience time.Duration, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := ready()
		switch {
		case err == nil:
			return nil
		case p.hasEnded():
			return fmt.Errorf("%w: %w\n%s", ErrEnded, err, p.Log())
		case time.Now().After(deadline):
			return fmt.Errorf("the server isn't ready after %s: %w\n%s", patience, err, p.Log())
		}
	}
}

// Restart ends a server that respawns by a signal, and returns when the next
// one runs; whether it answers yet is the caller's to find out.
func (p *Process) Restart(signal syscall.Signal) error {
	var before int
	err := p.WaitUntil(time.Minute, func() (err error) {
		before, err = p.respawned()
		return err
	})
	if err != nil {
		return err
	}
	if err := syscall.Kill(before, signal); err != nil {
		return fmt.Errorf("end the server for a restart: %w", err)
	}
	return p.WaitUntil(time.Minute, func() error {
		after, err := p.respawned()
		if err == nil && after == before {
			err = errors.New("it has not ended yet")
		}
		return err
	})
}

func (p *Process) respawned() (pid int, err error) {
	text, err := os.ReadFile(p.pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Stop returns when the server has ended.
func (p *Process) Stop() error {
	err := p.close()
	// Its status says only which signal ended it.
	if wait := p.keeper.Wait(); wait != nil && p.keeper.ProcessState == nil {
		err = errors.Join(err, wait)
	}
	return err
}

// Log is all that the server has printed.
func (p *Process) Log() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// hasEnded reads from a pipe into which nobody writes: its end of file is
// the keeper's end. Unlike a goroutine in Wait, it leaves nothing running.
func (p *Process) hasEnded() bool {
	if err := p.ended.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return true
	}
	_, err := p.ended.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

func (p *Process) close() error { return errors.Join(p.alive.Close(), p.ended.Close()) }
