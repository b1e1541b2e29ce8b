package history_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ownbucket/ownbucket/internal/outbox"
)

// mostShown bounds what a failing test prints; the file has all.
const mostShown = 25

// report prints the history's extent and, where something differs, what does,
// and where to read the whole history of what is affected.
func (h *history) report(t *testing.T, differences []difference) {
	t.Helper()
	environments, objects := 0, 0
	for _, s := range h.services {
		environments += len(s.environments) + len(s.gone)
		objects += len(s.AWS.Keys(s.Bucket))
	}
	t.Logf("seed %d: %d events, %d environments, %d objects at the end, %d workers, %.1f s", h.seed, len(h.acts), environments,
		objects, h.crew.hired, time.Since(h.began).Seconds())
	if len(differences) == 0 {
		return
	}
	slices.SortStableFunc(differences, func(a, b difference) int { return strings.Compare(a.service+a.media, b.service+b.media) })
	var shown []string
	for _, d := range differences[:min(len(differences), mostShown)] {
		shown = append(shown, d.service+": "+d.text)
	}
	file := filepath.Join(os.TempDir(), fmt.Sprintf("history-%s-%d.txt", h.stage.DB.Dialect, h.seed))
	if err := os.WriteFile(file, []byte(h.told(differences)), 0o600); err != nil {
		t.Error(err)
	}
	t.Errorf("seed %d: %d differences, %s has the history of what is affected:\n%s\n%s=%d makes it up again", h.seed,
		len(differences), file, strings.Join(shown, "\n"), seedVariable, h.seed)
}

// told is what differs, and then by time what happened to the affected media
// and their services' environments.
func (h *history) told(differences []difference) string {
	var text strings.Builder
	affected := map[string]bool{}
	for _, d := range differences {
		fmt.Fprintf(&text, "%s: %s\n", d.service, d.text)
		affected[d.service+"/"+d.media], affected[d.service+"/"] = true, true
	}
	listed, err := h.outbox.List(context.Background(), outbox.Filter{}, 0)
	if err != nil {
		fmt.Fprintln(&text, err)
	}
	lines := slices.Clone(h.notes)
	fmt.Fprintln(&text, "\nThe events by sequence:")
	for _, e := range listed {
		a := h.acts[e.EventID]
		if a == nil || !affected[a.service+"/"+a.media] {
			continue
		}
		name := fmt.Sprintf("event %d of %s", e.Sequence, a.service)
		fmt.Fprintf(&text, "%d %s: %s; may be %q, is %s %s\n", e.Sequence, a.service, a, a.ends, endOf(e), e.Error)
		lines = append(lines, fmt.Sprintf("%s %s published: %s", e.CreatedAt.UTC().Format(moment), name, a))
		if e.FinishedAt != nil {
			lines = append(lines, fmt.Sprintf("%s %s is %s", e.FinishedAt.UTC().Format(moment), name, endOf(e)))
		}
		lines = append(lines, h.attempts(e, name)...)
	}
	slices.Sort(lines)
	fmt.Fprintf(&text, "\nWhat happened, by time:\n%s\n", strings.Join(lines, "\n"))
	return text.String()
}

// attempts tells of an event's attempts when each began, and how it went.
func (h *history) attempts(e outbox.Listed, name string) []string {
	shown, err := h.outbox.Show(context.Background(), e.EventID)
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for _, a := range shown.Attempts {
		lines = append(lines, fmt.Sprintf("%s %s: attempt %d by %s, %.1f ms: %s %s", a.StartedAt.UTC().Format(moment), name,
			a.Number, a.Worker, a.DurationMS, a.ErrorCode, a.Error))
	}
	return lines
}
