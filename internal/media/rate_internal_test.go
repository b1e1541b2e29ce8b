package media

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// slow is a source that takes its time for each byte, until it is closed.
type slow struct {
	*bytes.Reader
	watch   *watch
	perByte time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	if s.Len() == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(s.perByte):
		return s.Reader.Read(p[:1])
	case <-s.watch.ctx.Done():
		return 0, s.watch.ctx.Err()
	}
}

func (slow) Close() error { return nil }

// The clock of these tests is synctest's.
func TestLeastRateIsAveragedOverTheWaitForTheSource(t *testing.T) {
	const grace, rate, length = 10 * time.Second, 2, 100
	tests := map[string]struct {
		perByte, consumer time.Duration // per byte
		fails             time.Duration // after that much waiting; 0: never
	}{
		"just fast enough":                  {perByte: time.Second / rate},
		"slower, but done within the grace": {perByte: time.Second/rate + (grace-time.Second)/length},
		"too slow":                          {perByte: 2 * time.Second / rate, fails: 2 * grace},
		"nothing comes":                     {perByte: time.Hour, fails: grace},
		"a slow consumer is no fault":       {perByte: time.Millisecond, consumer: time.Minute},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWatch(t.Context())
				body := &watchedBody{
					name: "source", watch: w, idle: time.Hour / 2, least: leastRate{rate, grace},
					body: slow{bytes.NewReader(make([]byte, length)), w, test.perByte},
				}
				defer body.Close()
				var err error
				for err == nil {
					_, err = body.Read(make([]byte, 10))
					time.Sleep(test.consumer)
				}
				if failed := err != io.EOF; failed != (test.fails > 0) {
					t.Errorf("ended with %v", err)
				}
				if test.fails > 0 && (body.waited < test.fails-time.Second || body.waited > test.fails+time.Second) {
					t.Errorf("waited %s for the source, want %s", body.waited, test.fails)
				}
			})
		})
	}
}
