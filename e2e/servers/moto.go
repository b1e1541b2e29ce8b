package servers

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// MotoServer is moto: S3, STS, IAM and CloudFront at one endpoint. It checks
// no signature and no policy before EnforceIAM.
type MotoServer struct{ Server }

// MotoAccount is the account that all of moto's resources are in.
const MotoAccount = "123456789012"

// Moto starts one; Root is an IAM user who may do everything.
func Moto(t testing.TB) *MotoServer {
	t.Helper()
	moto := program(t, "OWNBUCKET_TEST_MOTO", "venv/bin/moto_server")
	address := run(t, environment(t), func(address string) []string {
		host, port, _ := strings.Cut(address, ":")
		return []string{moto, "-H", host, "-p", port}
	})
	m := &MotoServer{Server{
		Endpoint:    "http://" + address,
		IAMEndpoint: "http://" + address,
		// Anybody, until EnforceIAM.
		Root: aws.Credentials{AccessKeyID: "anybody", SecretAccessKey: "anybody"},
	}}
	m.Root = m.CreateUser(t, "root", `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}`)
	return m
}

// CreateRole makes a role that the trust policy's principals may assume at
// Endpoint, and that may then do what the policy allows. Moto looks users
// of the trust policy up by ARN; the account's root matches nobody there.
func (m *MotoServer) CreateRole(t testing.TB, name, trustPolicy, policy string) (arn string) {
	t.Helper()
	var answer struct {
		ARN string `xml:"CreateRoleResult>Role>Arn"`
	}
	m.iam(t, "CreateRole", url.Values{"RoleName": {name}, "AssumeRolePolicyDocument": {trustPolicy}}, &answer)
	m.AllowRole(t, name, "test", policy)
	return answer.ARN
}

// AllowRole gives a role another policy beside those it has.
func (m *MotoServer) AllowRole(t testing.TB, name, policyName, policy string) {
	t.Helper()
	m.iam(t, "PutRolePolicy", url.Values{
		"RoleName": {name}, "PolicyName": {policyName}, "PolicyDocument": {policy},
	}, nil)
}

// EnforceIAM makes moto check signatures and policies from now on. It then
// takes an upload's key with spaces, "+", "%" or non-ASCII for a wrong
// signature.
func (m *MotoServer) EnforceIAM(t testing.TB) {
	t.Helper()
	// The number of calls that are still let through.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.Endpoint+"/moto-api/reset-auth", strings.NewReader("0"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("switch moto's checks on: %s", response.Status)
	}
}
