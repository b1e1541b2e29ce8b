package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// tick is the unit of times in /proc on Linux.
const tick = 10 * time.Millisecond

// serverOf is the process of the database's server, the parent of all its
// others.
func serverOf(ctx context.Context, url string) (pid int, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, fmt.Errorf("find the server: %w", err)
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		return 0, fmt.Errorf("find the server: %w", err)
	}
	pid, _ = stat(strconv.Itoa(pid))
	return pid, nil
}

// cpu is the user and system time of a process and of its children, those that
// have ended included.
func cpu(pid int) time.Duration {
	_, sum := stat(strconv.Itoa(pid))
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		if parent, used := stat(filepath.Base(process)); parent == pid {
			sum += used
		}
	}
	return sum
}

// stat reads a process's parent and the time that it and those of its children
// have used that have ended; see proc(5). Nothing is known of a process that
// has gone.
func stat(pid string) (parent int, used time.Duration) {
	content, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, 0
	}
	// The second field is a name in parentheses, which may hold anything.
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	number := func(field int) int {
		n, _ := strconv.Atoi(fields[field-3])
		return n
	}
	return number(4), time.Duration(number(14)+number(15)+number(16)+number(17)) * tick
}
