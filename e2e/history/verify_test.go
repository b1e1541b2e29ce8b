package history_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/outbox"
)

// difference is between what is there and what the model says.
type difference struct {
	service string
	// media is empty where it concerns an environment or the whole service.
	media, text string
}

// verifier holds an installation that is drained against the model.
type verifier struct {
	*history
	ctx         context.Context
	differences []difference
}

// verify fails the test with all that differs.
func (h *history) verify(t *testing.T) {
	t.Helper()
	v := &verifier{history: h, ctx: context.WithoutCancel(t.Context())}
	v.verifyEvents()
	v.verifyEnvironments()
	for _, s := range h.services {
		v.verifyBucket(s)
		v.verifyLedger(s)
	}
	v.verifyRights()
	for _, f := range h.faults {
		v.differ("", "", "%s", f)
	}
	h.report(t, v.differences)
}

func (v *verifier) differ(service, media, format string, args ...any) {
	v.differences = append(v.differences, difference{service, media, fmt.Sprintf(format, args...)})
}

// check is for what can't be looked at.
func (v *verifier) check(err error) {
	if err != nil {
		v.differ("", "", "%v", err)
	}
}

// verifyEvents: each event that was committed ended once, as it may, and there
// are no others.
func (v *verifier) verifyEvents() {
	listed, err := v.outbox.List(v.ctx, outbox.Filter{}, 0)
	v.check(err)
	seen := make(map[string]bool, len(listed))
	for _, e := range listed {
		seen[e.EventID] = true
		a := v.acts[e.EventID]
		if a == nil {
			v.differ(e.ServiceID, e.MediaID, "event %d was rolled back and is there: %s", e.Sequence, e.Type)
			continue
		}
		if end := endOf(e); !slices.Contains(a.ends, end) {
			v.differ(a.service, a.media, "event %d is %s, not %q: %s: %s", e.Sequence, end, a.ends, a, e.Error)
		}
	}
	for id, a := range v.acts {
		if !seen[id] {
			v.differ(a.service, a.media, "an event that was committed is not there: %s", a)
		}
	}
}

// endOf is the event's state with its outcome or its error's code.
func endOf(e outbox.Listed) string {
	switch e.State {
	case outbox.Completed:
		return e.State + " " + e.Outcome
	case outbox.Dead:
		return e.State + " " + e.ErrorCode
	}
	return e.State
}

// verifyEnvironments: those that exist are complete, and no others are known.
func (v *verifier) verifyEnvironments() {
	listed, err := v.environments.List(v.ctx, 0)
	v.check(err)
	states := map[string]string{}
	for _, e := range listed {
		states[e.ServiceID+"/"+e.EnvironmentID] = e.State
		if e.Failed > 0 {
			shown, err := v.environments.Show(v.ctx, e.ServiceID, e.EnvironmentID)
			v.check(err)
			for _, f := range shown.Failures {
				v.differ(e.ServiceID, f.MediaID, "environment %q lacks media %s: %s: %s", e.EnvironmentID, f.MediaID, f.ErrorCode, f.Error)
			}
		}
	}
	for _, s := range v.services {
		for _, e := range s.environments[1:] {
			id := s.Service + "/" + e.id
			if states[id] != "complete" {
				v.differ(s.Service, "", "environment %q is %q, not complete", e.id, states[id])
			}
			delete(states, id)
		}
		for _, e := range s.gone {
			if s.find(e.id) != nil {
				continue
			}
			if _, err := s.Settings.Show(v.ctx, s.Service, e.id); !errors.Is(err, integration.ErrNotFound) {
				v.differ(s.Service, "", "environment %q was deleted and has settings: %v", e.id, err)
			}
		}
	}
	for id, state := range states {
		v.differ("", "", "environment %s is %s, and should not be there", id, state)
	}
}

// verifyBucket: keys, bytes and metadata are what the model says.
func (v *verifier) verifyBucket(s *service) {
	type held struct{ environment, media, text string }
	want := map[string]held{}
	for _, sh := range s.shelves {
		for environment, st := range sh.stands {
			for name := range st.strangers {
				want[s.key(environment, name)] = held{environment, "", fmt.Sprintf("%s, map[]", checksum(strangers))}
			}
			for media, o := range st.objects {
				if o.live() {
					want[s.key(environment, o.name)] = held{environment, media, fmt.Sprintf("%s, %v, %s", checksum(o.content),
						map[string]string{"upload-source": "microcms", "microcms-service": serviceID(s.Service, environment),
							"microcms-version": bucket.FormatVersion(o.version.Micros()), "microcms-status": "public"}, o.contentType)}
				}
			}
		}
	}
	for _, o := range v.stage.AWS.Objects(s.Bucket) {
		w, expected := want[o.Key]
		delete(want, o.Key)
		got := fmt.Sprintf("%s, %v", o.SHA256, o.Metadata)
		if len(o.Metadata) > 0 {
			got += ", " + o.ContentType
		}
		switch {
		case strings.HasPrefix(bucket.FileName(o.Key), ".microcms-probe-"):
			// A worker that is killed leaves what it had put to probe the account.
		case !expected:
			v.differ(s.Service, s.mediaOf(o.Key), "extra object %q: %s", o.Key, got)
		case w.text != got:
			v.differ(s.Service, w.media, "object %q of %s in %q is\n    %s, not\n    %s", o.Key, w.media, w.environment, got, w.text)
		}
	}
	for key, w := range want {
		v.differ(s.Service, w.media, "missing object %q of %s in %q", key, w.media, w.environment)
	}
}

// mediaOf is the media whose event last named the file at a key.
func (s *service) mediaOf(key string) string {
	name, media, last := bucket.FileName(key), "", int64(0)
	for _, a := range s.acts {
		if a.service == s.Service && a.media != "" && a.n > last && (a.name == name || a.from == name) {
			media, last = a.media, a.n
		}
	}
	return media
}

func checksum(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

// verifyLedger: what `media show` tells is what the model says.
func (v *verifier) verifyLedger(s *service) {
	for _, sh := range s.shelves {
		for environment, st := range sh.stands {
			for media, o := range st.objects {
				want := fmt.Sprintf("deleted, version %s", o.version)
				if o.live() {
					want = fmt.Sprintf("%s, version %s, %s, %d bytes", s.key(environment, o.name), o.version, o.contentType, len(o.content))
				}
				row, err := v.ledger.Media(v.ctx, s.Service, environment, media)
				v.check(err)
				got := "nothing"
				if row != nil {
					got = fmt.Sprintf("deleted, version %s", versionOf(row.Version))
				}
				if row.Live() {
					got = fmt.Sprintf("%s, version %s, %s, %d bytes", *row.Key, versionOf(row.Version), row.ContentType, row.Size)
					if there, _, err := v.stage.AWS.GetDirect(s.Bucket, *row.Key); err == nil && there.ETag != row.ETag {
						got += fmt.Sprintf(", ETag %s where the bucket has %s", row.ETag, there.ETag)
					}
				}
				if got != want {
					v.differ(s.Service, media, "the ledger of %s in %q has\n    %s, not\n    %s", media, environment, got, want)
				}
			}
		}
	}
}

// verifyRights: nothing was asked for beyond the manual's policy.
func (v *verifier) verifyRights() {
	for _, r := range v.stage.AWS.Refused() {
		if _, denied := v.denied.Load(r.Role); !denied {
			v.differ("", "", "asked for more than the manual's policy grants: %+v", r)
		}
	}
}

func versionOf(micros int64) events.Version { return events.NewVersion(time.UnixMicro(micros)) }
