package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// cloud is our own stand-in, and who we are there.
type cloud struct {
	*awslocal.Server
	clouds
}

func startCloud(t testing.TB) *cloud {
	t.Helper()
	server, err := awslocal.Start(awslocal.Config{LogSize: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	us, err := server.AddUser(awslocal.User{Name: "ownbucket", Policy: assumeAnyRole})
	if err != nil {
		t.Fatal(err)
	}
	return &cloud{server, clouds{S3: server.Endpoint(), STS: server.Endpoint(), Credentials: us}}
}

// assumeAnyRole is all that the CMS's own identity may do.
const assumeAnyRole = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}]}`

// customer makes an account with a bucket and a role, as the manual has it.
func (c *cloud) customer(t testing.TB, bucket, prefix string) account {
	t.Helper()
	made, err := c.AddCustomer(awslocal.Customer{Bucket: bucket, Region: region, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	return account{Bucket: bucket, RoleARN: made.RoleARN, ExternalID: made.ExternalID, Prefix: prefix}
}

// objects are all that a bucket holds.
func (c *cloud) objects(t testing.TB, bucket string) map[string]object {
	t.Helper()
	held := map[string]object{}
	for _, o := range c.Objects(bucket) {
		if len(o.Tags) > 0 {
			t.Errorf("%s has tags", o.Key)
		}
		held[o.Key] = object{SHA256: o.SHA256, Size: o.Size, ContentType: o.ContentType, Metadata: o.Metadata}
	}
	return held
}

// stranger puts objects that somebody else owns.
func (c *cloud) stranger(t testing.TB, bucket string, keys ...string) {
	t.Helper()
	for _, key := range keys {
		_, err := c.PutDirect(bucket, key, []byte("not yours: "+key), awslocal.Stranger{
			ContentType: "text/plain", Metadata: map[string]string{"owner": "somebody"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// expectNothingBeyondTheManual: no call was refused, and none said more about
// an object than the manual promises.
func (c *cloud) expectNothingBeyondTheManual(t testing.TB) {
	t.Helper()
	for _, refusal := range c.Refused() {
		t.Errorf("refused: %s of %q: %s, %s", refusal.API, refusal.Key, refusal.Code, refusal.Reason)
	}
	for _, entry := range c.Log() {
		for _, header := range []string{"Cache-Control", "X-Amz-Acl", "X-Amz-Tagging", "X-Amz-Storage-Class"} {
			if values, sent := entry.Header[http.CanonicalHeaderKey(header)]; sent {
				t.Errorf("%s of %q sent %s: %v", entry.API, entry.Key, header, values)
			}
		}
	}
}

// expectCalls compares the calls since the last time, AssumeRole aside, of
// which each worker makes at most one per integration.
func (c *cloud) expectCalls(t testing.TB, phase string, sessions int, want map[string]int) {
	t.Helper()
	got := c.Counts()
	if assumed := got["sts:AssumeRole"]; assumed > sessions {
		t.Errorf("%s: %d AssumeRole, want at most %d", phase, assumed, sessions)
	}
	delete(got, "sts:AssumeRole")
	maps.DeleteFunc(want, func(_ string, calls int) bool { return calls == 0 })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: calls (-want +got):\n%s", phase, diff)
	}
}

// TestRealFilesGoThroughTheirWholeLife takes thousands of real files through
// all five events, and compares the buckets byte for byte after each phase.
func TestRealFilesGoThroughTheirWholeLife(t *testing.T) {
	long(t)
	t.Parallel()
	const files = 2_100
	root := goroot(t)
	picked := corpus(t, root, files)

	aws := startCloud(t)
	i := install(t, pgtest.URL(t), root, aws.clouds)
	// One customer has a prefix of two levels, the other the whole bucket.
	deep := i.production("SERVICE#0191d3c0-5a5e-7c3f-9d53-1f5a9c1b2d3e", aws.customer(t, "deep-bucket", "media/日本"))
	flat := i.production("SERVICE#2", aws.customer(t, "flat-bucket", ""))
	life := &life{t: t, aws: aws, installation: i, picked: picked, places: []*place{deep, flat}}
	life.strangers(deep, "index.html", "media/日本.txt", "media/日本/theirs.txt", "mediafoo/a.txt")
	life.strangers(flat, "index.html", "theirs/a b.txt")

	life.upload()
	life.change()
	life.copyEnvironments()
	life.changeEnvironments()
	life.deleteEnvironments()
	life.delete()

	i.expectAllDone(life.published)
	aws.expectNothingBeyondTheManual(t)
	for _, p := range life.places {
		if row := i.integration(p); row.Locked || row.State != "active" || row.WaitingEvents != 0 {
			t.Errorf("service %s ended as %+v, want active, unlocked, nothing waiting", p.service, row)
		}
	}
}

// life is the test at work: its phases, in order.
type life struct {
	*installation
	t            testing.TB
	aws          *cloud
	picked       []content
	places       []*place // production, one per service
	environments []*place
	published    int
	theirs       map[string]map[string]object // by bucket
}

func (l *life) strangers(p *place, keys ...string) {
	l.t.Helper()
	l.aws.stranger(l.t, p.Bucket, keys...)
	if l.theirs == nil {
		l.theirs = map[string]map[string]object{}
	}
	l.theirs[p.Bucket] = l.aws.objects(l.t, p.Bucket)
}

// at is the service that has the n-th file, and the file's media there.
func (l *life) at(n int) (*place, string) {
	return l.places[n%len(l.places)], fmt.Sprintf("media-%d", n)
}

// phase publishes and works, and compares buckets and calls.
func (l *life) phase(name string, workers int, lines []line, calls map[string]int) {
	l.t.Helper()
	l.aws.ResetCounts()
	started := time.Now()
	for batch := range slices.Chunk(lines, 1000) {
		l.publish(batch...)
	}
	publishing := time.Since(started)
	l.published += len(lines)
	took := l.work(workers)
	l.report(name, len(lines), publishing, took)
	for _, p := range l.places {
		expect(l.t, name, l.aws.objects(l.t, p.Bucket), l.theirs[p.Bucket], l.of(p.Bucket)...)
	}
	l.aws.expectNothingBeyondTheManual(l.t)
	l.aws.expectCalls(l.t, name, workers*len(l.places), calls)
}

// of are the places in a bucket.
func (l *life) of(bucket string) []*place {
	var found []*place
	for _, p := range append(slices.Clone(l.places), l.environments...) {
		if p.Bucket == bucket {
			found = append(found, p)
		}
	}
	return found
}

func (l *life) report(phase string, events int, publishing, took time.Duration) {
	var objects, bytes int64
	for _, p := range l.places {
		for _, o := range l.aws.Objects(p.Bucket) {
			objects++
			bytes += o.Size
		}
	}
	var calls []string
	sum, counts := 0, l.aws.Counts()
	for _, api := range slices.Sorted(maps.Keys(counts)) {
		sum += counts[api]
		calls = append(calls, fmt.Sprintf("%d %s", counts[api], api))
	}
	l.t.Logf("%-20s %4d events published in %.1f s, worked off in %.1f s (%.0f events, %.0f calls a second); "+
		"the buckets hold %d files, %.1f MB; calls: %s",
		phase, events, publishing.Seconds(), took.Seconds(), float64(events)/took.Seconds(), float64(sum)/took.Seconds(),
		objects, float64(bytes)/1e6, strings.Join(calls, ", "))
}

func (l *life) upload() {
	var lines []line
	for n, c := range l.picked {
		p, media := l.at(n)
		lines = append(lines, p.upload(media, nameOf(n, c, awkward), c, told(n%3)))
	}
	l.phase("upload", 1, lines, map[string]int{"s3:PutObject": len(lines)})
	l.sampleLedger(l.places)
}

// change renames a third of the files, and uploads the others' bytes to a
// third each under the same and under another name. Two workers share it.
func (l *life) change() {
	var lines []line
	calls := map[string]int{}
	for n, c := range l.picked {
		p, media := l.at(n)
		other := l.picked[(n+1)%len(l.picked)]
		renamed := "new " + nameOf(n+1, c, awkward) + fmt.Sprint(n)
		switch n / len(l.places) % 3 {
		case 0:
			lines = append(lines, p.rename(media, renamed))
			// Only AWS itself can be trusted with COPY's condition: elsewhere a
			// HEAD comes first.
			calls["s3:HeadObject"]++
			calls["s3:CopyObject"]++
			calls["s3:DeleteObject"]++
		case 1:
			lines = append(lines, p.upload(media, p.media[media].name, other, sizeAndSum))
			calls["s3:PutObject"]++
		default:
			lines = append(lines, p.upload(media, renamed, other, sizeAndSum))
			calls["s3:PutObject"]++
			calls["s3:DeleteObject"]++
		}
	}
	l.phase("rename and re-upload", 2, lines, calls)
	l.sampleLedger(l.places)
}

// copyEnvironments copies both services, and goes on changing their production
// at once: an environment has the media as of its event.
func (l *life) copyEnvironments() {
	var lines []line
	copied := 0
	for n, p := range l.places {
		environment, created := p.create("dev", fmt.Sprintf("shop-%d-dev", n+1))
		copied += len(environment.media)
		l.environments = append(l.environments, environment)
		lines = append(lines, created)
	}
	const renames = 20
	for n := range renames {
		p, media := l.at(n)
		lines = append(lines, p.rename(media, fmt.Sprintf("after the copy %d.bin", n)))
	}
	l.phase("copy environments", 2, lines, map[string]int{
		"s3:HeadObject": copied + renames, "s3:CopyObject": copied + renames, "s3:DeleteObject": renames,
	})
	l.sampleLedger(l.environments)
	for _, p := range l.environments {
		if got := l.integration(p).KeyPrefix; got != p.prefix() {
			l.t.Errorf("environment %s of service %s has the key prefix %q, want %q", p.environment, p.service, got, p.prefix())
		}
	}
}

// changeEnvironments changes what was copied, which mustn't touch production.
func (l *life) changeEnvironments() {
	const each = 30
	var lines []line
	for _, p := range l.environments {
		for n, media := range slices.Sorted(maps.Keys(p.media))[:3*each] {
			switch n % 3 {
			case 0:
				lines = append(lines, p.rename(media, "dev "+p.media[media].name))
			case 1:
				lines = append(lines, p.upload(media, p.media[media].name, l.picked[n], sizeAndSum))
			default:
				lines = append(lines, p.remove(media))
			}
		}
	}
	sum := each * len(l.environments)
	l.phase("change environments", 1, lines, map[string]int{
		"s3:HeadObject": sum, "s3:CopyObject": sum, "s3:PutObject": sum, "s3:DeleteObject": 2 * sum,
	})
}

// deleteEnvironments deletes the whole directory, with what others put there,
// and nothing beside it.
func (l *life) deleteEnvironments() {
	var lines []line
	calls := map[string]int{}
	for _, p := range l.environments {
		beside := strings.TrimSuffix(p.prefix(), "/") + "foo/a.txt"
		l.aws.stranger(l.t, p.Bucket, p.prefix()+"theirs/b.txt", beside)
		l.theirs[p.Bucket][beside] = l.aws.objects(l.t, p.Bucket)[beside]
		pages := (len(p.media) + 1 + 999) / 1000
		// One listing more finds nothing.
		calls["s3:ListObjectsV2"] += pages + 1
		calls["s3:DeleteObjects"] += pages
		lines = append(lines, p.destroy())
	}
	l.phase("delete environments", 1, lines, calls)
}

func (l *life) delete() {
	var lines []line
	for n := range l.picked {
		p, media := l.at(n)
		lines = append(lines, p.remove(media))
	}
	l.phase("delete", 1, lines, map[string]int{"s3:DeleteObject": len(lines)})
	for _, p := range l.places {
		if len(l.aws.Objects(p.Bucket)) != len(l.theirs[p.Bucket]) {
			l.t.Errorf("%s holds more than the strangers' files", p.Bucket)
		}
	}
}

// sampleLedger asks the program what it knows of some media.
func (l *life) sampleLedger(places []*place) {
	l.t.Helper()
	for _, p := range places {
		for n, media := range slices.Sorted(maps.Keys(p.media)) {
			if n%100 != 0 {
				continue
			}
			want := p.media[media]
			key := p.prefix() + want.name
			o, _, err := l.aws.GetDirect(p.Bucket, key)
			if err != nil {
				l.t.Fatalf("%s: %v", key, err)
			}
			var got ledgerRow
			l.read(&got, "media", "show", "--service", p.service, "--environment", p.environment, "--media", media)
			if diff := cmp.Diff(ledgerRow{
				MediaID: media, Key: key, URL: got.URL, Version: want.version.String(), ContentType: want.content.kind,
				Size: want.content.size, ETag: o.ETag,
			}, got); diff != "" {
				l.t.Errorf("the ledger of %s (-want +got):\n%s", media, diff)
			}
		}
	}
}

// ledgerRow is what `media show` tells.
type ledgerRow struct {
	MediaID     string `json:"media_id"`
	Key         string `json:"key"`
	URL         string `json:"url"`
	Version     string `json:"version"`
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`
	ETag        string `json:"etag"`
	Deleted     bool   `json:"deleted"`
}
