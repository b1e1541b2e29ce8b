package media

import (
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/failure"
)

func TestBudgetIsNeverExceededAndTheLongestAlwaysFindsRoom(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.Int64Range(1, 20).Draw(t, "most")
		limit := rapid.Int64Range(2*most, 6*most+1).Draw(t, "limit")
		b := newBudget(limit, most)
		var open []*reservation
		held := make(map[*reservation]int64)
		of := func(service string) (total, longest int64) {
			for r, n := range held {
				if service == "" || r.service == service {
					total, longest = total+n, max(longest, n)
				}
			}
			return total, longest
		}
		pick := func(t *rapid.T) *reservation {
			if len(open) == 0 {
				t.Skip("nothing is open")
			}
			return open[rapid.IntRange(0, len(open)-1).Draw(t, "which")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				r := b.open(rapid.SampledFrom([]string{"A", "B", "C"}).Draw(t, "service"))
				open = append(open, r)
				held[r] = 0
			},
			"grow": func(t *rapid.T) {
				r := pick(t)
				n := rapid.Int64Range(0, most-held[r]).Draw(t, "bytes")
				_, longest := of("")
				_, longestOfService := of(r.service)
				services := map[string]bool{r.service: true}
				for other, n := range held {
					services[other.service] = services[other.service] || n > 0
				}
				beside := 0
				for _, used := range services {
					if used {
						beside++
					}
				}
				err := r.grow(n)
				switch {
				case err == nil:
					held[r] += n
				case held[r] == longest:
					t.Fatalf("the longest found no room: %v", err)
				case held[r] == longestOfService && beside <= 2:
					t.Fatalf("the longest of a service found no room beside one other service: %v", err)
				}
			},
			"release": func(t *rapid.T) {
				r := pick(t)
				r.release()
				r.release()
				delete(held, r)
				open = slices.DeleteFunc(open, func(one *reservation) bool { return one == r })
				if err := r.grow(1); err == nil {
					t.Fatal("what was released grew")
				}
			},
			"": func(t *rapid.T) {
				total, _ := of("")
				if b.reserved() != total || total > limit {
					t.Fatalf("%d bytes are reserved, of which uploads have %d, with a limit of %d", b.reserved(), total, limit)
				}
				for _, service := range []string{"A", "B", "C"} {
					if used, _ := of(service); used > limit/2 {
						t.Fatalf("service %s has %d of %d bytes", service, used, limit)
					}
				}
			},
		})
		for r := range held {
			r.release()
		}
		if b.reserved() != 0 || len(b.reservations) != 0 {
			t.Fatalf("%d bytes in %d reservations were not given back", b.reserved(), len(b.reservations))
		}
	})
}

// endless is a source that says nothing of its length.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("the source's") }

func TestSpoolIsGivenBackWhateverEndsTheUpload(t *testing.T) {
	t.Parallel()
	const limit = 3 << 20
	begun := func() io.Reader { return io.LimitReader(endless{}, 2<<20) }
	for name, c := range map[string]struct {
		source io.Reader
		digest []byte
		code   string
	}{
		"it breaks off":      {source: io.MultiReader(begun(), iotest.ErrReader(unavailable("broke off"))), code: CodeUnavailable},
		"it panics":          {source: io.MultiReader(begun(), panicking{}), code: failure.Internal},
		"it is too large":    {source: endless{}, code: failure.TooLarge},
		"it has other bytes": {source: io.LimitReader(endless{}, limit), digest: []byte("other"), code: failure.ChecksumMismatch},
		"it is closed":       {source: io.LimitReader(endless{}, limit)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := New(Options{MaxUpload: limit, SpoolDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			content, err := failure.ContainResult(func() (*Content, error) {
				return s.measure(&stream{name: "source", size: -1, body: io.NopCloser(c.source)}, "S1", c.digest)
			})
			switch {
			case c.code != "":
				if f := failure.Of(err); f == nil || f.Code != c.code {
					t.Errorf("%v, want %s", err, c.code)
				}
			case err != nil:
				t.Fatal(err)
			default:
				if diff := cmp.Diff([]int64{limit, limit}, []int64{content.Size, s.Spooled()}); diff != "" {
					t.Error(diff)
				}
				content.Body.Close()
				content.Body.Close()
			}
			if left := s.Spooled(); left != 0 {
				t.Errorf("%d bytes were not given back", left)
			}
		})
	}
}
