package awslocal_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

func TestRuleFailsTheCallsThatItSelects(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	slow := w.Inject(awslocal.Rule{API: "s3:Put*", Bucket: w.customer.Bucket, Key: "media/*", Skip: 1, Times: 2, Status: 503, Code: "SlowDown"})
	keys := []string{"media/1", "other", "media/2", "media/3", "media/4"}
	var got []string
	for _, key := range keys {
		_, err := w.put(client, key, "v")
		got = append(got, codeOf(err))
	}
	if diff := cmp.Diff([]string{"", "", "SlowDown", "SlowDown", ""}, got); diff != "" {
		t.Error(diff)
	}
	if slow.Hits() != 2 {
		t.Errorf("%d hits", slow.Hits())
	}
	if diff := cmp.Diff([]string{"media/1", "media/4", "other"}, w.Keys(w.customer.Bucket)); diff != "" {
		t.Error(diff)
	}
	conflict := w.Inject(awslocal.Rule{Match: func(c awslocal.Call) bool { return c.Session == "ownbucket-test" }, Status: 409, Code: "ConditionalRequestConflict"})
	_, err := w.put(client, "k", "v")
	check(t, err, "ConditionalRequestConflict")
	conflict.Remove()
	_, err = w.put(client, "k", "v")
	check(t, err, "")
	if refused := w.Refused(); len(refused) != 0 {
		t.Errorf("injected failures count as refusals: %+v", refused)
	}
}

func TestResponseIsLostBeforeOrAfterTheEffect(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	for _, after := range []bool{false, true} {
		w.DeleteDirect(w.customer.Bucket, "k")
		rule := w.Inject(awslocal.Rule{API: "s3:PutObject", Times: 1, Reset: true, AfterEffect: after})
		if _, err := w.put(client, "k", "v"); err == nil || strings.Contains(codeOf(err), "k") && codeOf(err) == "" {
			t.Errorf("after the effect %v: the call succeeded", after)
		}
		if stored := w.content("k") == "v"; stored != after {
			t.Errorf("after the effect %v: stored %v", after, stored)
		}
		rule.Remove()
	}
}

func TestCallHangsUntilItsClientGivesUp(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	w.Inject(awslocal.Rule{API: "s3:PutObject", Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	w.Inject(awslocal.Rule{API: "s3:HeadObject", Before: func(context.Context, awslocal.Call) { cancel() }, Hang: true})
	_, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("k")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRemovingTheRuleLetsHangingCallsGo(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	reached := make(chan struct{})
	rule := w.Inject(awslocal.Rule{Before: func(context.Context, awslocal.Call) { close(reached) }, Hang: true, Times: 1})
	done := make(chan error, 1)
	go func() { _, err := w.put(client, "k", "v"); done <- err }()
	<-reached
	rule.Remove()
	if err := <-done; err == nil {
		t.Error("the call succeeded")
	}
	_, err := w.put(client, "k", "v")
	check(t, err, "")
}

func TestTestActsBetweenCallAndEffect(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	w.Inject(awslocal.Rule{API: "s3:PutObject", Times: 1, Before: func(context.Context, awslocal.Call) {
		must(w.PutDirect(w.customer.Bucket, "k", []byte("stranger's"), awslocal.Stranger{}))
	}})
	_, err := w.put(client, "k", "ours", func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
	check(t, err, "PreconditionFailed")
	if got := w.content("k"); got != "stranger's" {
		t.Error(got)
	}
}

func TestCopyAnswersOKWithABrokenBody(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	_, err := w.put(client, "k", "v")
	check(t, err, "")
	w.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, Status: 200, Body: aws.String(`<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>`)})
	check(t, w.copy(client, "k", "l"), "InternalError")
	w.Inject(awslocal.Rule{API: "s3:CopyObject", Times: 1, AfterEffect: true, Status: 200, Body: aws.String("")})
	out, err := client.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &w.customer.Bucket, Key: aws.String("l"), CopySource: w.source("k")})
	if err == nil && out.CopyObjectResult != nil {
		t.Errorf("an empty answer is read as %+v", out.CopyObjectResult)
	}
	if got := w.content("l"); got != "v" {
		t.Error(got)
	}
}

func TestBodyOfAReadIsCutOff(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{Options: awslocal.BucketOptions{Public: true}})
	must(w.PutDirect(w.customer.Bucket, "k", []byte("0123456789"), awslocal.Stranger{}))
	w.Inject(awslocal.Rule{API: "s3:GetObject", CutBody: 4})
	res, err := w.http.Get(w.ObjectURL(w.customer.Bucket, "k"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got [10]byte
	n, err := res.Body.Read(got[:])
	for err == nil && n < len(got) {
		var more int
		more, err = res.Body.Read(got[n:])
		n += more
	}
	if n > 4 || err == nil {
		t.Errorf("%d bytes and %v", n, err)
	}
}

func TestDelayHoldsTheCallUp(t *testing.T) {
	w := newWorld(t, awslocal.Config{}, awslocal.Customer{})
	client := w.session()
	w.Inject(awslocal.Rule{API: "s3:PutObject", Delay: 20 * time.Millisecond})
	began := time.Now()
	_, err := w.put(client, "k", "v")
	check(t, err, "")
	if took := time.Since(began); took < 20*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

func TestCallsAreCountedAndRemembered(t *testing.T) {
	w := newWorld(t, awslocal.Config{LogSize: 4}, awslocal.Customer{})
	check(t, w.CreateBucket("second", awslocal.BucketOptions{OwnerAccount: w.customer.Account}), "")
	client := w.session()
	for range 3 {
		_, err := w.put(client, "k", "v", func(in *s3.PutObjectInput) {
			in.IfMatch, in.Metadata = aws.String(`"x"`), map[string]string{"microcms-status": "public"}
		})
		if err == nil {
			t.Error("no conflict")
		}
	}
	_, _ = w.put(client, "k", "v", func(in *s3.PutObjectInput) { in.Bucket = aws.String("second") })
	_, _ = w.sts(w.keys).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: &w.customer.RoleARN, RoleSessionName: aws.String("other")})

	for name, test := range map[string]struct{ got, want map[string]int }{
		"all":    {w.Counts(), map[string]int{"s3:PutObject": 4, "sts:AssumeRole": 2}},
		"bucket": {w.BucketCounts(w.customer.Bucket), map[string]int{"s3:PutObject": 3}},
		"second": {w.BucketCounts("second"), map[string]int{"s3:PutObject": 1}},
		"role":   {w.RoleCounts(w.customer.RoleARN), map[string]int{"s3:PutObject": 4, "sts:AssumeRole": 2}},
		"none":   {w.BucketCounts("none"), map[string]int{}},
	} {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	log := w.Log()
	if len(log) != 4 {
		t.Fatalf("%d entries, want the newest 4", len(log))
	}
	put := log[0]
	want := http.Header{"If-Match": {`"x"`}, "X-Amz-Meta-Microcms-Status": {"public"}}
	got := http.Header{"If-Match": put.Header["If-Match"], "X-Amz-Meta-Microcms-Status": put.Header["X-Amz-Meta-Microcms-Status"]}
	if diff := cmp.Diff(want, got); diff != "" || put.Status != 404 || put.Code != "NoSuchKey" || put.Session != "ownbucket-test" {
		t.Errorf("%+v %s", put, diff)
	}
	for _, entry := range log {
		if entry.Header.Get("Authorization")+entry.Header.Get("X-Amz-Security-Token") != "" {
			t.Error("the log holds credentials")
		}
	}
	refused := w.Refused()
	if len(refused) != 2 || refused[0].Bucket != "second" || refused[1].API != "sts:AssumeRole" || refused[1].Session != "other" {
		t.Errorf("refused: %+v", refused)
	}
	w.ResetCounts()
	if len(w.Counts())+len(w.Log())+len(w.Refused()) != 0 {
		t.Error("something is still remembered")
	}
}
