package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// owners are whose code a frame is of, by how its function's name begins. A
// sample belongs to the innermost frame that has an owner: what we call in the
// standard library is our time, and what the SDK calls there is the SDK's. What
// no frame owns is the runtime's: garbage collection, scheduling.
var owners = []struct{ prefix, owner string }{
	{"github.com/ownbucket/ownbucket/internal/bucket.(*stallConn).", "net/http"}, // it reads and writes sockets
	{"github.com/ownbucket/ownbucket/", ownCode},
	{"github.com/aws/", "AWS SDK"},
	{"net/http.", "net/http"},
	{"github.com/jackc/", "database driver"},
	{"github.com/jmoiron/", "database driver"},
	{"database/sql.", "database driver"},
	{"github.com/ThreeDotsLabs/", "Watermill"},
	{"go.opentelemetry.io/", "OpenTelemetry"},
}

const (
	ownCode     = "our own code"
	runtimeCode = "Go runtime"
)

// spent is CPU time of this process, by owner.
type spent map[string]int64

// during adds what is spent while run runs. Only one may run at a time.
func (s *spent) during(run func() error) error {
	var recorded bytes.Buffer
	if err := pprof.StartCPUProfile(&recorded); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	err := run()
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	parsed, err := profile.Parse(&recorded)
	if err != nil {
		return fmt.Errorf("read the profile: %w", err)
	}
	if len(parsed.SampleType) < 2 {
		return errors.New("read the profile: it has no CPU time")
	}
	if *s == nil {
		*s = make(spent)
	}
	for _, sample := range parsed.Sample {
		(*s)[ownerOf(sample)] += sample.Value[1] // samples, nanoseconds
	}
	return nil
}

func ownerOf(sample *profile.Sample) string {
	for _, location := range sample.Location { // the innermost first, of inlined lines too
		for _, line := range location.Line {
			for _, o := range owners {
				if line.Function != nil && strings.HasPrefix(line.Function.Name, o.prefix) {
					return o.owner
				}
			}
		}
	}
	return runtimeCode
}

// row tells our share, and in its limit the others'.
func (s spent) row(scenario string, events int) row {
	var sum int64
	var others []string
	for owner, nanoseconds := range s {
		sum += nanoseconds
		if owner != ownCode {
			others = append(others, owner)
		}
	}
	slices.SortFunc(others, func(a, b string) int { return cmp.Compare(s[b], s[a]) })
	share := func(owner string) float64 { return 100 * float64(s[owner]) / float64(sum) }
	for i, owner := range others {
		others[i] = fmt.Sprintf("%s %.0f %%", owner, share(owner))
	}
	return row{Scenario: scenario, Subject: ownbucket.name, Events: events, Figure: share(ownCode),
		Unit: "% of CPU in our own code", Limit: strings.Join(others, ", ")}
}
