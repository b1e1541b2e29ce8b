package media

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ownbucket/ownbucket/internal/failure"
)

// chunks is a source that gives its bytes in arbitrary portions, with or
// without io.EOF beside the last ones, and may break off.
type chunks struct {
	left     []byte
	portion  func() int
	eofEarly bool
	broken   error // instead of io.EOF
}

func (c *chunks) Read(p []byte) (int, error) {
	end := c.broken
	if end == nil {
		end = io.EOF
	}
	if len(c.left) == 0 {
		return 0, end
	}
	n := copy(p[:min(len(p), c.portion())], c.left)
	c.left = c.left[n:]
	if len(c.left) == 0 && c.eofEarly {
		return n, end
	}
	return n, nil
}

func (c *chunks) Close() error { return nil }

func TestConsumerNeverGetsAllBytesOfAContentThatIsNotAsPromised(t *testing.T) {
	t.Parallel()
	breaks := unavailable("the source broke off")
	rapid.Check(t, func(t *rapid.T) {
		sent := make([]byte, rapid.IntRange(0, 3*withheldLimit).Draw(t, "sent"))
		for i := range sent {
			sent[i] = byte(i * 7)
		}
		promised := int64(max(0, len(sent)+rapid.OneOf(rapid.Just(0), rapid.IntRange(-2, 2), rapid.IntRange(-2*withheldLimit, 2*withheldLimit)).Draw(t, "lie")))
		source := &chunks{
			left:     bytes.Clone(sent),
			portion:  func() int { return rapid.IntRange(0, 2*withheldLimit).Draw(t, "portion") },
			eofEarly: rapid.Bool().Draw(t, "EOF beside the last bytes"),
		}
		if rapid.Bool().Draw(t, "breaks off") {
			source.broken = breaks
		}
		var digest []byte
		trueDigest := true
		if rapid.Bool().Draw(t, "has a checksum") {
			sum := sha256.Sum256(sent)
			digest = sum[:]
			if trueDigest = rapid.Bool().Draw(t, "the right one"); !trueDigest {
				digest[rapid.IntRange(0, 31).Draw(t, "wrong byte")] ^= 1
			}
		}

		v := newVerifier(&stream{name: "s", size: promised, body: source}, digest)
		var got []byte
		var err error
		for err == nil {
			p := make([]byte, rapid.IntRange(0, 2*withheldLimit).Draw(t, "buffer"))
			var n int
			n, err = v.Read(p)
			got = append(got, p[:n]...)
		}

		good := source.broken == nil && promised == int64(len(sent)) && trueDigest
		if !bytes.HasPrefix(sent, got) {
			t.Fatal("bytes were changed")
		}
		if good {
			if err != io.EOF || !bytes.Equal(got, sent) {
				t.Fatalf("a good content: %d of %d bytes, %v", len(got), len(sent), err)
			}
			return
		}
		var failed *failure.Error
		if !errors.As(err, &failed) {
			t.Fatalf("a bad content ended with %v", err)
		}
		if promised > 0 && int64(len(got)) >= promised {
			t.Fatalf("all %d promised bytes were given out before %v", promised, err)
		}
		if _, again := v.Read(make([]byte, 1)); again != err {
			t.Fatalf("then %v", again)
		}
	})
}

func TestSlowConsumerIsNotTheSourcesSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t.Context())
		source := &chunks{left: make([]byte, 2), portion: func() int { return 1 }}
		body := &watchedBody{name: "s", body: source, watch: w, idle: time.Second}
		defer body.Close()
		for range 2 {
			if _, err := body.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			if err := w.ctx.Err(); err != nil {
				t.Fatalf("the transfer was cancelled while the consumer was busy: %v", err)
			}
		}
	})
}

func TestGuardChecksTheAddressThatIsReached(t *testing.T) {
	t.Parallel()
	g := newGuard(Options{SourcePorts: []uint16{443, 8443}})
	for address, public := range map[string]bool{
		"8.8.8.8:443":                   true,
		"8.8.8.8:8443":                  true,
		"[2001:4860:4860::8888]:443":    true,
		"[::ffff:8.8.8.8]:443":          true,
		"[64:ff9b::808:808]:443":        true,  // NAT64 of 8.8.8.8
		"[64:ff9b::7f00:1]:443":         false, // … of 127.0.0.1
		"[64:ff9b::a9fe:a9fe]:443":      false, // … of 169.254.169.254
		"[64:ff9b::a00:1]:443":          false, // … of 10.0.0.1
		"[64:ff9b:1::808:808]:443":      false, // NAT64 for local use
		"[2002:7f00:1::]:443":           false, // 6to4 of 127.0.0.1
		"[2002:808:808::]:443":          false,
		"[2001::7f00:1]:443":            false, // Teredo
		"[2001:db8::1]:443":             false,
		"[::]:443":                      false,
		"[::1]:443":                     false,
		"[::7f00:1]:443":                false, // IPv4-compatible
		"[fd00:ec2::254]:443":           false,
		"[fc00::1]:443":                 false,
		"[fe80::1]:443":                 false,
		"[fe80::1%eth0]:443":            false,
		"[64:ff9b::808:808%eth0]:443":   false,
		"[fec0::1]:443":                 false,
		"[ff02::1]:443":                 false,
		"[::ffff:10.0.0.1]:443":         false,
		"[::ffff:169.254.169.254]:443":  false,
		"168.63.129.16:80":              false,
		"198.18.0.1:443":                false,
		"a name that wasn't resolved:1": false,
	} {
		network := "tcp4"
		if address[0] == '[' {
			network = "tcp6"
		}
		if err := g.control(network, address, nil); (err == nil) != public {
			t.Errorf("%s: %v", address, err)
		}
		if g.control("udp", address, nil) == nil {
			t.Errorf("%s is allowed over udp", address)
		}
	}
}
