package handlers_test

import (
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// wrongBytes are uploads whose source isn't what the event says.
var wrongBytes = []struct {
	name    string
	content string
	spoil   func(e *events.MediaUploaded)
	state   string
}{
	{"checksum, in memory", "new", wrongChecksum, "dead checksum_mismatch"},
	{"checksum, streamed", big, wrongChecksum, "dead checksum_mismatch"},
	{"checksum, without size", "new", func(e *events.MediaUploaded) { wrongChecksum(e); e.Size = nil }, "dead checksum_mismatch"},
	{"checksum, streamed without size", big, func(e *events.MediaUploaded) { wrongChecksum(e); e.Size = nil }, "dead checksum_mismatch"},
	{"too short, in memory", "new", longer, "dead size_mismatch"},
	{"too short, streamed", big, longer, "dead size_mismatch"},
	{"too short, streamed without checksum", big, func(e *events.MediaUploaded) { longer(e); e.ChecksumSHA256 = "" }, "dead size_mismatch"},
	{"too long, in memory", "new", shorter, "dead size_mismatch"},
	{"too long, streamed without checksum", big, func(e *events.MediaUploaded) { shorter(e); e.ChecksumSHA256 = "" }, "dead size_mismatch"},
	{"empty instead of something", "", longer, "dead size_mismatch"},
	{"something instead of empty", "x", func(e *events.MediaUploaded) { e.Size, e.ChecksumSHA256 = ref(int64(0)), "" }, "dead size_mismatch"},
}

func wrongChecksum(e *events.MediaUploaded) { e.ChecksumSHA256 = strings.Repeat("0", 64) }
func longer(e *events.MediaUploaded)        { e.Size = ref(*e.Size + 1) }
func shorter(e *events.MediaUploaded)       { e.Size = ref(*e.Size - 1) }

func TestAFailedVerificationLeavesTheBucketAsItWas(t *testing.T) {
	eachStage(t, func(t *testing.T, s *stage.Stage) {
		customers := places(s, wrongBytes)
		for _, p := range customers {
			publish(p, p.Upload("m1", "a.txt", "good"))
		}
		finish(s)
		ids := make([][]string, len(wrongBytes))
		for i, tc := range wrongBytes {
			for _, media := range []string{"m1", "m2"} { // a re-upload, and a first upload
				e := s.Upload(media, map[string]string{"m1": "a.txt", "m2": "b.txt"}[media], tc.content)
				tc.spoil(&e)
				ids[i] = append(ids[i], publish(customers[i], e)...)
			}
			moved := s.Upload("m1", "c.txt", tc.content)
			tc.spoil(&moved)
			ids[i] = append(ids[i], publish(customers[i], moved)...)
		}
		finish(s)
		for i, tc := range wrongBytes {
			t.Run(tc.name, func(t *testing.T) {
				wantStates(t, customers[i], ids[i], tc.state, tc.state, tc.state)
				wantContents(t, customers[i], contents{"media/a.txt": "good"})
				wantLedgerTrue(t, customers[i], "m1", "m2")
			})
		}
	})
}

// S3 itself compares what arrives with the event's SHA-256.
func TestTheChecksumTravelsWithThePut(t *testing.T) {
	each(t, func(t *testing.T, p *stage.Place) {
		small, large := p.Upload("m1", "a.txt", "one"), p.Upload("m2", "b.txt", big)
		run(p, small, large)
		sent := map[string]string{}
		for _, entry := range p.AWS.Log() {
			if entry.API == put {
				sent[entry.Key] = entry.Header.Get("X-Amz-Checksum-Sha256")
			}
		}
		for key, e := range map[string]events.MediaUploaded{"media/a.txt": small, "media/b.txt": large} {
			if want := base64Of(t, e.ChecksumSHA256); sent[key] != want {
				t.Errorf("%s was sent with the SHA-256 %q, want %q", key, sent[key], want)
			}
		}
	})
}
