package media

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/dustin/go-humanize"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// DefaultSpoolLimit is how many bytes a worker spools at most, unless it is told
// otherwise.
const DefaultSpoolLimit int64 = 20 << 30

// CheckSpoolLimit refuses a spool in whose half, which is a service's share, the
// largest upload has no room.
func CheckSpoolLimit(limit, maxUpload int64) error {
	if limit/2 >= maxUpload {
		return nil
	}
	return fmt.Errorf("the spool's limit of %d bytes (OWNBUCKET_SPOOL_LIMIT) must be at least twice the upload limit of %d (OWNBUCKET_MAX_UPLOAD): "+
		"the uploads of one service may have half of the spool", limit, maxUpload)
}

// budget bounds the bytes of all spooled uploads: together by limit, those of one
// service by share.
//
// An upload that finds no room fails and gives back what it had. Uploads that fill
// the budget together could fail each other for ever. So what the longest one may
// still need is kept free from all others, in the budget and in each share: the
// longest upload of all always finds room. So does the longest of a service,
// whatever one other service does, since that one leaves half of the budget.
type budget struct {
	limit, share int64
	// most is how many bytes one upload may need; a share has room for it.
	most int64

	mu   sync.Mutex
	used int64
	// reservations are few: each is of an event in flight.
	reservations map[*reservation]struct{}
}

// reservation is what one upload has of the budget.
type reservation struct {
	budget  *budget
	service string
	bytes   int64
}

func newBudget(limit, most int64) *budget {
	return &budget{limit: limit, share: limit / 2, most: most, reservations: make(map[*reservation]struct{})}
}

// open begins a reservation, of nothing. Its owner releases it.
func (b *budget) open(service string) *reservation {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &reservation{budget: b, service: service}
	b.reservations[r] = struct{}{}
	return r
}

// release gives all bytes back. Only the first call does.
func (r *reservation) release() {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= r.bytes
	r.bytes = 0
	delete(b.reservations, r)
}

// grow reserves n more bytes, or none and fails.
func (r *reservation) grow(n int64) error {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, open := b.reservations[r]; !open {
		return os.ErrClosed
	}
	var service, longest, longestOfService int64
	for other := range b.reservations {
		bytes := other.bytes
		if other == r {
			bytes += n
		}
		longest = max(longest, bytes)
		if other.service == r.service {
			service += bytes
			longestOfService = max(longestOfService, bytes)
		}
	}
	if !b.fits(b.limit, b.used+n, longest) || !b.fits(b.share, service, longestOfService) {
		return errSpoolFull{limit: b.limit, used: b.used, service: r.service, ofService: service - n}
	}
	b.used += n
	r.bytes += n
	return nil
}

// fits tells whether uploads that use that much of a space leave the longest of
// them what it may still need.
func (b *budget) fits(space, used, longest int64) bool { return used+(b.most-longest) <= space }

func (b *budget) reserved() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

type errSpoolFull struct {
	limit, used int64
	service     string
	ofService   int64
}

func (e errSpoolFull) Error() string {
	return fmt.Sprintf("the uploads in this worker's spool have %s of at most %s (OWNBUCKET_SPOOL_LIMIT), and those of service %s %s of at most half of that",
		humanize.IBytes(uint64(e.used)), humanize.IBytes(uint64(e.limit)), e.service, humanize.IBytes(uint64(e.ofService)))
}

// spooled is a content in a file that has no name.
type spooled struct {
	file *os.File
	room *reservation
}

func (s *spooled) Read(p []byte) (int, error) { return s.file.Read(p) }

func (s *spooled) Seek(offset int64, whence int) (int64, error) { return s.file.Seek(offset, whence) }

// Write reserves what it writes.
func (s *spooled) Write(p []byte) (int, error) {
	if err := s.room.grow(int64(len(p))); err != nil {
		return 0, err
	}
	return s.file.Write(p)
}

// Close frees the disk, and then the budget.
func (s *spooled) Close() error {
	defer s.room.release()
	return s.file.Close()
}

func (s *Sources) newSpooled(service string) (*spooled, error) {
	file, err := os.CreateTemp(s.options.SpoolDir, "ownbucket-spool-*")
	if err != nil {
		return nil, err
	}
	// Without a name nothing is left behind, however the process ends.
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return &spooled{file: file, room: s.budget.open(service)}, nil
}

// spool returns a file with head and the rest of the source in it, rewound, and
// how long both are. What goes beyond the upload limit counts, but isn't written.
func (s *Sources) spool(service string, head []byte, source io.Reader) (_ *spooled, size int64, err error) {
	file, err := s.newSpooled(service)
	if err != nil {
		return nil, 0, err
	}
	complete := false
	defer func() {
		if !complete { // a panic of the source included
			_ = file.Close() // it is thrown away
		}
	}()
	if _, err := file.Write(head); err != nil {
		return nil, 0, err
	}
	size = int64(len(head))
	rest, err := io.Copy(file, io.LimitReader(source, s.options.MaxUpload-size))
	if err != nil {
		return nil, 0, err
	}
	beyond, err := io.Copy(io.Discard, source)
	if err != nil {
		return nil, 0, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, 0, err
	}
	complete = true
	return file, size + rest + beyond, nil
}

// spoolFailed passes on what is the source's fault. The rest is the disk's, or a
// lack of room.
func spoolFailed(name string, err error) error {
	var full errSpoolFull
	var disk *os.PathError
	switch {
	case errors.As(err, &full):
		return failure.New(failure.Interrupted, failure.SpoolFull,
			"%s doesn't tell its length, and there is no room to measure it now: %w; it is tried again and loses no attempt", name, full)
	case errors.As(err, &disk):
		return failure.New(failure.Transient, failure.Internal, "spooling an upload of unknown length, check the spool directory's free space and rights: %w", err)
	default:
		return err
	}
}
