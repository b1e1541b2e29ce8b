package e2e_test

import (
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/pgtest"
)

// Nobody heard whether the dead worker's upload arrived, and its event is given
// up: what it left is removed with the media's next event.
func TestWhatAKilledWorkerMayHaveWrittenIsNotLeftBehind(t *testing.T) {
	long(t)
	t.Parallel()
	root := t.TempDir()
	contents := write(t, root, "content", 2)
	aws := startCloud(t)
	i := install(t, pgtest.URL(t), root, aws.clouds, "OWNBUCKET_LEASE_DURATION="+lease.String())
	p := i.production("SERVICE#1", aws.customer(t, "bucket", "media"))
	unheard := aws.Inject(awslocal.Rule{API: "s3:PutObject", AfterEffect: true, Hang: true})

	lost := i.publish(p.line(p.uploaded("media", "lost.png", contents[0])))
	fleet := i.launch(t, 1)
	until(t, "the upload to arrive", func() bool { return unheard.Hits() > 0 })
	i.run("integration", "pause", "--service", p.service, "--reason", "end-to-end test")
	fleet.kill()
	aws.ClearFaults()
	until(t, "another worker to take over", func() bool { return fleet.workers[0].said("took over lanes") })
	i.run(append([]string{"events", "discard", "--reason", "end-to-end test"}, lost...)...)
	if held := len(aws.Objects(p.Bucket)); held != 1 {
		t.Fatalf("the bucket holds %d objects: the test is badly timed", held)
	}

	i.run("integration", "resume", "--service", p.service, "--reason", "end-to-end test")
	i.publish(p.upload("media", "kept.png", contents[1], sizeAndSum))
	until(t, "the next event to end", func() bool { return i.events()[1].State == "completed" })
	fleet.retire()
	expect(t, "the end", aws.objects(t, p.Bucket), nil, p)
}
