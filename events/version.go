package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Version orders the events of one media: a time with microseconds. It must
// not fall in a media's publish order; an event older than what is stored is
// completed as superseded and touches nothing.
//
// Two versions are equal (==) when they are the same microsecond. The zero
// Version is none, and invalid in an event.
type Version struct {
	utc time.Time // whole microseconds, without a monotonic reading
}

// Versions are also written as yyyyMMddHHmmss, which has four digits a year.
const (
	firstYear = 1970
	lastYear  = 9999
)

// rfc3339 is stricter than the time package, which takes a comma for the point
// and an hour of one digit.
var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$`)

// NewVersion cuts off what is finer than a microsecond.
func NewVersion(t time.Time) Version {
	if t.IsZero() {
		return Version{}
	}
	return Version{utc: t.UTC().Round(0).Truncate(time.Microsecond)}
}

// ParseVersion reads an RFC 3339 time; digits finer than microseconds are cut.
func ParseVersion(text string) (Version, error) {
	t, err := time.Parse(time.RFC3339, strings.ToUpper(text))
	if err != nil || !rfc3339.MatchString(text) {
		return Version{}, fmt.Errorf("is not an RFC 3339 time: %s", quote(text))
	}
	v := NewVersion(t)
	if fault := v.fault(); fault != "" {
		return Version{}, errors.New(fault)
	}
	return v, nil
}

// Micros is the number of microseconds since 1970.
func (v Version) Micros() int64 { return v.utc.UnixMicro() }

// Time is the version as a time in UTC.
func (v Version) Time() time.Time { return v.utc }

// IsZero tells whether there is no version.
func (v Version) IsZero() bool { return v.utc.IsZero() }

// Equal tells whether both are the same microsecond.
func (v Version) Equal(other Version) bool { return v == other }

// Compare is negative when v is older than other, positive when it is newer.
func (v Version) Compare(other Version) int { return v.utc.Compare(other.utc) }

// String is the version in RFC 3339, in UTC.
func (v Version) String() string { return v.utc.Format(time.RFC3339Nano) }

// MarshalJSON writes what UnmarshalJSON reads, and refuses anything else.
func (v Version) MarshalJSON() ([]byte, error) {
	if fault := v.fault(); fault != "" {
		return nil, fmt.Errorf("version %s", fault)
	}
	return json.Marshal(v.String())
}

func (v *Version) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New("version must be a string")
	}
	parsed, err := ParseVersion(text)
	if err != nil {
		return fmt.Errorf("version %w", err)
	}
	*v = parsed
	return nil
}

func (v Version) fault() string {
	switch year := v.utc.Year(); {
	case v.IsZero():
		return "is missing"
	case year < firstYear || year > lastYear:
		return fmt.Sprintf("is not between the years %d and %d", firstYear, lastYear)
	default:
		return ""
	}
}
