package failure

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// Contain runs work whose panic ends that work alone. The panic becomes an
// internal fault, which is retried: one line that says where it happened.
func Contain(work func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = New(Transient, Internal, "panic in %s: %s", origin(), oneLine(value))
		}
	}()
	return work()
}

// ContainResult is [Contain] for work that has a result.
func ContainResult[T any](work func() (T, error)) (result T, err error) {
	err = Contain(func() (err error) {
		result, err = work()
		return err
	})
	return result, err
}

// origin names the function that panicked and those that called it. A deferred
// function sees their frames below those of the runtime.
func origin() string {
	const callers = 3
	counters := make([]uintptr, 64)
	frames := runtime.CallersFrames(counters[:runtime.Callers(1, counters)])
	var found []string
	for panicking, more := false, true; more && len(found) < callers; {
		var frame runtime.Frame
		frame, more = frames.Next()
		switch {
		case strings.HasPrefix(frame.Function, "runtime."):
			panicking = true
		case panicking:
			found = append(found, fmt.Sprintf("%s (%s:%d)", path.Base(frame.Function), path.Base(frame.File), frame.Line))
		}
	}
	return strings.Join(found, ", called by ")
}

// oneLine spells a panic's value. Of a value that doesn't say how it is spelt it
// tells only the type: its fields may be secrets.
func oneLine(value any) string {
	const most = 200 // characters
	text := fmt.Sprintf("a value of type %T", value)
	switch value.(type) {
	case error, fmt.Stringer, string:
		text = strings.Join(strings.Fields(fmt.Sprint(value)), " ")
	}
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}
