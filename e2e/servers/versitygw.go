package servers

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// VersityGW starts an S3 server over files, with a policy engine for IAM
// users. It has no STS: who needs one puts moto or internal/awslocal beside.
func VersityGW(t testing.TB) *Server {
	t.Helper()
	gateway := program(t, "OWNBUCKET_TEST_VERSITYGW", "bin/versitygw")
	root := aws.Credentials{AccessKeyID: "versityroot", SecretAccessKey: "versityrootsecret"}
	env := environment(t, "ROOT_ACCESS_KEY="+root.AccessKeyID, "ROOT_SECRET_KEY="+root.SecretAccessKey)

	socket := filepath.Join(socketDirectory(t), "iam")
	accounts, objects := t.TempDir(), t.TempDir()
	iam := run(t, env, func(address string) []string {
		return []string{
			gateway, "--port", address, "--region", Region, "--quiet",
			"iam", "--quiet", "--dir", accounts, "--private-ports", socket,
		}
	})
	s3 := run(t, env, func(address string) []string {
		return []string{
			gateway, "--port", address, "--region", Region, "--quiet", "--keep-alive",
			"--iam-standalone-endpoint", socket, "posix", objects,
		}
	})
	return &Server{Endpoint: "http://" + s3, IAMEndpoint: "http://" + iam, Root: root}
}

// socketDirectory has a short name: a socket's path may have 107 bytes, and
// t.TempDir's holds the name of the test.
func socketDirectory(t testing.TB) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	return directory
}
