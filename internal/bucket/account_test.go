package bucket_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/bucket"
)

func TestAnAccountPrintsWithoutItsExternalID(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	a := bucket.Account{ServiceID: "S1", Bucket: "b", ExternalID: secret}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("account", "account", a, "pointer", &a)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("account", "account", a, "pointer", &a)
	for _, value := range []any{a, &a, []bucket.Account{a}, struct{ A bucket.Account }{a}, map[string]*bucket.Account{"a": &a}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(encoded)
	}
	if printed := out.String(); strings.Contains(printed, secret) || strings.Contains(printed, fmt.Sprintf("%x", secret)) || !strings.Contains(printed, `"S1"`) {
		t.Errorf("printed:\n%s", printed)
	}
}
