package dev_test

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/ownbucket/ownbucket/internal/dev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDemonstrationShowsAllFiveEventsAndEndsWell(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := dev.Run(t.Context(), dev.Options{Once: true, Dir: t.TempDir()}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, shown := range []string{
		"MediaUploaded", "MediaRenamed", "MediaDeleted", "EnvironmentCreated", "EnvironmentDeleted",
		"写真 2026+春.jpg", "microcms-service=demo-staging", "Everything is as it should be",
	} {
		if !strings.Contains(out.String(), shown) {
			t.Errorf("the output lacks %q:\n%s", shown, out.String())
		}
	}
}
