package e2e_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// That the manual's policy suffices is what every scenario here shows, since
// none may be refused a call. This shows that a policy which allows less is
// noticed, holds the events without losing any, and can be mended.
func TestAPolicyNarrowerThanTheManualsHoldsTheEvents(t *testing.T) {
	for _, missing := range []struct {
		action string
		// refused is the call that the stand-in refuses; none where the manual
		// allows what we don't need.
		refused string
	}{
		{action: "s3:GetBucketLocation"},
		{action: "s3:ListBucket", refused: "s3:ListObjectsV2"},
		{action: "s3:GetObject", refused: "s3:HeadObject"},
		{action: "s3:PutObject", refused: "s3:PutObject"},
		{action: "s3:DeleteObject", refused: "s3:DeleteObject"},
	} {
		t.Run("without "+missing.action, func(t *testing.T) {
			long(t)
			t.Parallel()
			at, root := ownSite(t), t.TempDir()
			i := install(t, "sqlite:"+filepath.Join(t.TempDir(), "ownbucket.db"), root, at.clouds)
			p := i.production("SERVICE#1", at.account)
			whole := awslocal.CustomerPolicy(at.Bucket, at.Prefix)
			allow(t, at, narrower(t, whole, missing.action))

			contents := write(t, root, "content", 3)
			lines := []line{
				p.upload("renamed", "a b.txt", contents[0], sizeAndSum),
				p.upload("deleted", "gone.txt", contents[1], sizeAndSum),
				p.rename("renamed", "写真+%.txt"), p.remove("deleted"),
				p.upload("other", "other.txt", contents[2], sizeAndSum),
			}
			i.publish(lines...)
			i.work(1)
			if missing.refused == "" {
				i.expectAllDone(len(lines))
				at.cloud.expectNothingBeyondTheManual(t)
				return
			}

			if !slices.ContainsFunc(at.cloud.Refused(), func(r awslocal.Refusal) bool { return r.API == missing.refused }) {
				t.Errorf("no %s was refused: %+v", missing.refused, at.cloud.Refused())
			}
			if row := i.integration(p); row.State != "blocked" || row.BlockedReason == "" || row.WaitingEvents == 0 {
				t.Errorf("the integration is %+v, want blocked with a reason and waiting events", row)
			}
			if !slices.ContainsFunc(i.events(), func(e eventRow) bool { return e.State == "held" }) {
				t.Errorf("no event is held: %+v", i.events())
			}

			allow(t, at, whole)
			worker := i.start(nil, "worker")
			i.run("integration", "set", "--service", p.service, "--memo", "mended", "--skip-test", "--reason", "mended")
			until(t, "all events to be completed", func() bool {
				return !slices.ContainsFunc(i.events(), func(e eventRow) bool { return e.State != "completed" })
			})
			worker.terminate()
			worker.succeed()
			i.expectAllDone(len(lines))
			got := at.objects(t)
			for key := range got {
				// A probe that may not delete can't clean up.
				if missing.action == "s3:DeleteObject" && strings.HasPrefix(key, p.prefix()+".microcms-probe-") {
					delete(got, key)
				}
			}
			expect(t, "mended", got, nil, p)
		})
	}
}

// The same on a policy engine that others wrote.
func TestAnIndependentServerRefusesANarrowerPolicyToo(t *testing.T) {
	long(t)
	t.Parallel()
	at := versitySiteUnder(t, narrower(t, awslocal.CustomerPolicy(siteBucket, sitePrefix), "s3:DeleteObject"))
	root := t.TempDir()
	i := install(t, "sqlite:"+filepath.Join(t.TempDir(), "ownbucket.db"), root, at.clouds)
	p := i.production("SERVICE#1", at.account)
	i.publish(p.upload("media", "a.txt", write(t, root, "content", 1)[0], sizeAndSum))
	i.work(1)
	i.expectAllDone(1)
	expect(t, "upload", at.objects(t), nil, p)

	i.publish(p.line(p.renamed("media", "b.txt")))
	i.work(1)
	if row := i.integration(p); row.State != "blocked" || row.WaitingEvents != 1 {
		t.Errorf("the integration is %+v, want blocked with one waiting event", row)
	}
	if _, kept := at.objects(t)[p.prefix()+"a.txt"]; !kept {
		t.Error("the file that may not be deleted is gone")
	}
}

// narrower takes an action out of a policy.
func narrower(t *testing.T, policy, action string) string {
	t.Helper()
	for _, text := range []string{`"` + action + `", `, `, "` + action + `"`} {
		if strings.Contains(policy, text) {
			return strings.Replace(policy, text, "", 1)
		}
	}
	t.Fatalf("the policy doesn't list %s:\n%s", action, policy)
	return ""
}

func allow(t *testing.T, at *site, policy string) {
	t.Helper()
	if err := at.cloud.ChangeRole(at.RoleARN, func(r *awslocal.Role) { r.Policy = policy }); err != nil {
		t.Fatal(err)
	}
}
