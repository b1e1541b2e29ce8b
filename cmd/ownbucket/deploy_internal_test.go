package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/dustin/go-humanize"

	"github.com/ownbucket/ownbucket/internal/media"
)

func TestTheDeploymentsSpoolIsLargerThanItsLimit(t *testing.T) {
	manifest, err := os.ReadFile("../../deploy/kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`sizeLimit: (\d+Gi)\b`).FindSubmatch(manifest)
	if found == nil {
		t.Fatal("the spool has no limit")
	}
	size, err := humanize.ParseBytes(string(found[1]) + "B")
	if err != nil || int64(size) <= media.DefaultSpoolLimit {
		t.Errorf("the spool has %s (%v), which is not above the limit of %d bytes", found[1], err, media.DefaultSpoolLimit)
	}
}

func TestTheSpoolsDefaultIsTheWorkers(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range configurationFlags(parser.Model) {
		if flag.Name != "spool-limit" {
			continue
		}
		if size, err := humanize.ParseBytes(flag.Default); err != nil || int64(size) != media.DefaultSpoolLimit {
			t.Errorf("--spool-limit is %s by default (%v), and a worker's %d bytes", flag.Default, err, media.DefaultSpoolLimit)
		}
	}
}
