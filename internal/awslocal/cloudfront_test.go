package awslocal_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudfront"
	"github.com/aws/aws-sdk-go-v2/service/cloudfront/types"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

const distribution = "EDFDVBD6EXAMPLE"

func purge(t *testing.T, client *cloudfront.Client, id, reference string, paths ...string) (*types.Invalidation, error) {
	t.Helper()
	out, err := client.CreateInvalidation(t.Context(), &cloudfront.CreateInvalidationInput{
		DistributionId: &id,
		InvalidationBatch: &types.InvalidationBatch{
			CallerReference: &reference, Paths: &types.Paths{Items: paths, Quantity: aws.Int32(int32(len(paths)))},
		},
	})
	if err != nil {
		return nil, err
	}
	return out.Invalidation, nil
}

func wildcards(n int) []string {
	paths := make([]string, n)
	for i := range paths {
		paths[i] = fmt.Sprintf("/media/%d*", i)
	}
	return paths
}

func exact(n int) []string {
	paths := make([]string, n)
	for i := range paths {
		paths[i] = fmt.Sprintf("/media/%d", i)
	}
	return paths
}

func TestInvalidationIsFollowedToItsCompletion(t *testing.T) {
	clock := newClock()
	w := newWorld(t, awslocal.Config{Now: clock.now, InvalidationTime: time.Minute}, awslocal.Customer{Distribution: distribution})
	client := w.cloudfront(w.assume(""))
	first, err := purge(t, client, distribution, "ref", "/media/a%20b*")
	check(t, err, "")
	again, err := purge(t, client, distribution, "ref", "/media/a%20b*")
	check(t, err, "")
	if *first.Id != *again.Id || *first.Status != "InProgress" {
		t.Errorf("%v then %v (%v)", *first.Id, *again.Id, *first.Status)
	}
	_, err = purge(t, client, distribution, "ref", "/media/other*")
	check(t, err, "InvalidationBatchAlreadyExists")
	clock.advance(time.Minute)
	got, err := client.GetInvalidation(t.Context(), &cloudfront.GetInvalidationInput{DistributionId: aws.String(distribution), Id: first.Id})
	check(t, err, "")
	if *got.Invalidation.Status != "Completed" || got.Invalidation.InvalidationBatch.Paths.Items[0] != "/media/a%20b*" {
		t.Errorf("%+v", got.Invalidation)
	}
	_, err = client.GetInvalidation(t.Context(), &cloudfront.GetInvalidationInput{DistributionId: aws.String(distribution), Id: aws.String("INONE")})
	check(t, err, "NoSuchInvalidation")
	if all := w.Invalidations(distribution); len(all) != 1 || !all[0].Completed {
		t.Errorf("%+v", all)
	}
}

func TestInvalidationsInProgressHaveAQuota(t *testing.T) {
	w := newWorld(t, awslocal.Config{InvalidationTime: -1}, awslocal.Customer{Distribution: distribution})
	w.AddDistribution("EOTHER", w.customer.Account)
	if err := w.ChangeRole(w.customer.RoleARN, func(r *awslocal.Role) {
		r.Policy = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"cloudfront:*","Resource":"*"}}`
	}); err != nil {
		t.Fatal(err)
	}
	client := w.cloudfront(w.assume(""))
	const tooMany = "TooManyInvalidationsInProgress"
	steps := []struct {
		id    string
		paths []string
		code  string
	}{
		{distribution, wildcards(16), tooMany},
		{distribution, wildcards(15), ""},
		{distribution, []string{"/x*"}, tooMany},
		{distribution, exact(3000), ""},
		{distribution, []string{"/x"}, tooMany},
		{"EOTHER", append(wildcards(15), exact(2985)...), ""},
	}
	for i, step := range steps {
		_, err := purge(t, client, step.id, fmt.Sprint("ref-", i), step.paths...)
		if got := codeOf(err); got != step.code {
			t.Errorf("step %d: %v, want %q", i, err, step.code)
		}
	}
	w.CompleteInvalidations(distribution)
	_, err := purge(t, client, distribution, "after", "/x*")
	check(t, err, "")
}

func TestCloudFrontThrottlesAnAccount(t *testing.T) {
	clock := newClock()
	w := newWorld(t, awslocal.Config{Now: clock.now, InvalidationInterval: 2 * time.Second}, awslocal.Customer{Distribution: distribution})
	client := w.cloudfront(w.assume(""))
	_, err := purge(t, client, distribution, "1", "/a*")
	check(t, err, "")
	clock.advance(time.Second)
	_, err = purge(t, client, distribution, "2", "/b*")
	check(t, err, "Throttling")
	clock.advance(time.Second)
	_, err = purge(t, client, distribution, "2", "/b*")
	check(t, err, "")
}

func TestInvalidPathsRefuseTheWholeBatch(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Distribution: distribution})
	client := w.cloudfront(w.assume(""))
	for _, path := range []string{"media/a", "*", "/a*b", "/a b", "/~a", "/\u30AC", "#tag", "/a**", "/" + fmt.Sprintf("%04000d", 0)} {
		_, err := purge(t, client, distribution, path, "/good*", path)
		if codeOf(err) != "InvalidArgument" {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"/*", "/a%7E*", "/a+b", "/a'(1)!$&,;=:@", "/%E3%82%AC%20*"} {
		_, err := purge(t, client, distribution, path, path)
		check(t, err, "")
	}
}

func TestPurgeNeedsItsOwnRight(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Distribution: distribution})
	w.AddDistribution("ESTRANGER", "222222222222")
	client := w.cloudfront(w.assume(""))
	_, err := purge(t, client, "EUNNAMED", "1", "/a*")
	check(t, err, "AccessDenied")
	_, err = purge(t, w.cloudfront(w.keys), distribution, "1", "/a*")
	check(t, err, "NoSuchDistribution")
	if err := w.ChangeRole(w.customer.RoleARN, func(r *awslocal.Role) {
		r.Policy = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"cloudfront:CreateInvalidation","Resource":"*"}}`
	}); err != nil {
		t.Fatal(err)
	}
	_, err = purge(t, client, "ESTRANGER", "1", "/a*")
	check(t, err, "NoSuchDistribution")
	made, err := purge(t, client, distribution, "1", "/a*")
	check(t, err, "")
	_, err = client.GetInvalidation(t.Context(), &cloudfront.GetInvalidationInput{DistributionId: aws.String(distribution), Id: made.Id})
	check(t, err, "AccessDenied")
}
