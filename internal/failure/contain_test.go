package failure_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestAPanicBecomesAShortInternalFault(t *testing.T) {
	t.Parallel()
	var none *int
	for name, c := range map[string]struct {
		work func() error
		want string
	}{
		"of the runtime": {func() error { return errors.New(string(rune(*none))) }, `nil pointer dereference$`},
		"a text":         {func() error { panic("a\nb\tc") }, `: a b c$`},
		"an error":       {func() error { panic(errors.New("broken")) }, `: broken$`},
		"a long text":    {func() error { panic(strings.Repeat("長", 5000)) }, `: 長{200}…$`},
		"fields":         {func() error { panic(struct{ secret string }{"hidden"}) }, `: a value of type struct { secret string }$`},
	} {
		f := failure.Of(failure.Contain(c.work))
		if f == nil || f.Class != failure.Transient || f.Code != failure.Internal {
			t.Errorf("%s: %v, want a transient internal fault", name, f)
			continue
		}
		where := regexp.MustCompile(`^panic in failure_test\.TestAPanicBecomesAShortInternalFault\.func\d \(contain_test\.go:\d+\), called by failure\.Contain`)
		if text := f.Error(); !where.MatchString(text) || !regexp.MustCompile(c.want).MatchString(text) || strings.Contains(text, "\n") {
			t.Errorf("%s: %q, want it to end in %s", name, text, c.want)
		}
	}
}

func TestAnErrorPassesUnchanged(t *testing.T) {
	t.Parallel()
	want := errors.New("an error")
	if err := failure.Contain(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	if err := failure.Contain(func() error { return nil }); err != nil {
		t.Error(err)
	}
}
