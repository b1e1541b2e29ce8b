package media_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/failure"
	"github.com/ownbucket/ownbucket/internal/media"
)

// The trickle never pauses for as long as IdleTimeout, and would last for hours.
func TestHTTPSTrickleGivesItsSlotBack(t *testing.T) {
	t.Parallel()
	for name, length := range map[string]string{"in memory": "100000", "streamed": "100000000", "spooled": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, options := newHost(t, func(w http.ResponseWriter, r *http.Request) {
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				w.WriteHeader(http.StatusOK)
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for r.Context().Err() == nil {
					w.Write([]byte("x"))
					http.NewResponseController(w).Flush()
					<-tick.C
				}
			})
			options.RateGrace = 50 * time.Millisecond
			_, _, err := receive(t, newSources(t, options), host.URL, nil, "")
			wantFailure(t, err, failure.Transient, media.CodeSlow)
			if want := "on average less than 64 KiB a second (OWNBUCKET_SOURCE_MIN_RATE)"; !strings.Contains(err.Error(), want) {
				t.Errorf("%q doesn't say %q", err, want)
			}
		})
	}
}

func TestHTTPSAtTheLeastRateArrives(t *testing.T) {
	t.Parallel()
	want := randomBytes(2 * mebibyte)
	host, options := newHost(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(want) })
	options.MinRate, options.RateGrace = 1, time.Minute
	got, _, err := receive(t, newSources(t, options), host.URL, nil, "")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
