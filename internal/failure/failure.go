// Package failure sorts what went wrong into the four classes that decide
// what happens to an event: retried, held with its integration, dead, or
// simply run again.
package failure

import (
	"context"
	"errors"
	"fmt"
)

// Class decides what happens to the event that failed.
type Class string

const (
	// Transient failures are retried with backoff: 5xx, throttling, timeouts.
	Transient Class = "transient"
	// Integration failures block the customer's integration: AssumeRole or
	// access denied, no such bucket, wrong region. Its events are held.
	Integration Class = "integration"
	// Permanent failures make the event dead at once.
	Permanent Class = "permanent"
	// Interrupted work lost its lease, was shut down, or found no room in the
	// worker's spool: no attempt is lost.
	Interrupted Class = "interrupted"
)

// Codes of errors. Those that operators filter by are a contract; they are
// never renamed.
const (
	KeyTaken         = "key_taken"
	FileNamePinned   = "file_name_pinned"
	InvalidEvent     = "invalid_event"
	UnknownType      = "unknown_type"
	SourceGone       = "source_gone"
	SourceRefused    = "source_refused"
	SizeMismatch     = "size_mismatch"
	ChecksumMismatch = "checksum_mismatch"
	TooLarge         = "too_large"
	NoIntegration    = "no_integration"
	PredecessorDead  = "predecessor_dead"
	ObjectMissing    = "object_missing"
	Denied           = "denied"
	SourceChanged    = "source_changed"
	OtherAccount     = "other_account"

	// Throttled, Timeout and SourceSlow also shrink the integration's concurrency.
	Throttled = "throttled"
	Timeout   = "timeout"
	// SourceSlow is an upload's source that kept the worker waiting for too long.
	SourceSlow = "source_slow"

	// SourceUnavailable is an upload's source that can't be reached, fails or breaks
	// off. It says nothing about the customer's integration.
	SourceUnavailable = "source_unavailable"

	// SpoolFull is an upload of unknown length that other uploads leave no room on the
	// worker's disk. It says nothing about its event, source or integration.
	SpoolFull = "spool_full"

	// ServerError is a 5xx, a reset connection or an unreadable answer.
	ServerError = "server_error"
	// Internal is a fault of our own: a bug or our database.
	Internal = "internal"
	// Canceled is the code of interrupted work.
	Canceled = "canceled"
	// Lapsed is counted against an event that ran alone when its lease lapsed.
	Lapsed = "lease_lapsed"
)

// Error is a classified failure. Its text says what failed, for whom and
// what to do, and never holds a secret.
type Error struct {
	Class Class
	Code  string
	// RequestID is AWS's, where AWS answered.
	RequestID string
	err       error
}

// New classifies a failure; format and args are fmt.Errorf's, %w included.
func New(class Class, code, format string, args ...any) *Error {
	return &Error{Class: class, Code: code, err: fmt.Errorf(format, args...)}
}

// WithRequestID adds AWS's request ID.
func (e *Error) WithRequestID(id string) *Error {
	e.RequestID = id
	return e
}

func (e *Error) Error() string { return e.err.Error() }

func (e *Error) Unwrap() error { return e.err }

// Slows tells whether the failure is one that calls for fewer events at once, so
// that those that hang leave slots to other customers.
func (e *Error) Slows() bool {
	return e.Code == Throttled || e.Code == Timeout || e.Code == SourceSlow
}

// Of classifies any error. A cancelled context is interrupted work, a passed
// deadline a transient timeout, and what nobody classified is an internal
// fault, which is retried: it loses no data.
func Of(err error) *Error {
	var classified *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified):
		if error(classified) == err { //nolint:errorlint // the very error, not one that wraps it
			return classified
		}
		// Keep the words that were wrapped around it.
		return &Error{Class: classified.Class, Code: classified.Code, RequestID: classified.RequestID, err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Class: Transient, Code: Timeout, err: err}
	case errors.Is(err, context.Canceled):
		return &Error{Class: Interrupted, Code: Canceled, err: err}
	default:
		return &Error{Class: Transient, Code: Internal, err: err}
	}
}
