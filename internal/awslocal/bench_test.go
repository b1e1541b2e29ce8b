package awslocal_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// BenchmarkPut tells what tests and benchmarks of the worker spend on their
// stand-in, the SDK's own cost included.
func BenchmarkPut(b *testing.B) {
	server := must(awslocal.Start(awslocal.Config{}))
	defer server.Close()
	keys := must(server.AddUser(awslocal.User{}))
	if err := server.CreateBucket("bucket", awslocal.BucketOptions{}); err != nil {
		b.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	defer transport.CloseIdleConnections()
	client := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(server.Endpoint()), UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(keys.AccessKeyID, keys.SecretAccessKey, ""),
	})
	w := &world{Server: server, customer: awslocal.Customer{Bucket: "bucket"}}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for n := 0; pb.Next(); n++ {
			if _, err := w.put(client, fmt.Sprint("k/", n), "small"); err != nil {
				b.Error(err)
			}
		}
	})
}
