package worker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/worker"
)

func TestAConfigurationPrintsWithoutTheDatabasesPassword(t *testing.T) {
	t.Parallel()
	config := worker.Config{Name: "w1", DatabaseURL: "postgres://ownbucket:s3cr3t@db/cms"}
	if printed := fmt.Sprintf("%v %+v %#v %d %v", config, config, config, config, &config); strings.Contains(printed, "s3cr3t") || !strings.Contains(printed, "w1") {
		t.Error(printed)
	}
}
