package bucket

import (
	"context"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/auth"
	smithyendpoints "github.com/aws/smithy-go/endpoints"
)

// endpoint remembers where a client's one bucket is. The SDK finds it out anew
// twice in each call, by rules that cost as much as sending a small object; yet
// they look at nothing but the client's options and the bucket.
type endpoint struct {
	rules  s3.EndpointResolverV2
	bucket string
	known  atomic.Pointer[smithyendpoints.Endpoint]
}

func (e *endpoint) ResolveEndpoint(ctx context.Context, params s3.EndpointParameters) (smithyendpoints.Endpoint, error) {
	if aws.ToString(params.Bucket) != e.bucket || params.UseS3ExpressControlEndpoint != nil ||
		params.UseObjectLambdaEndpoint != nil || params.DisableAccessPoints != nil {
		return e.rules.ResolveEndpoint(ctx, params)
	}
	known := e.known.Load()
	if known == nil {
		found, err := e.rules.ResolveEndpoint(ctx, params)
		if err != nil {
			return found, err
		}
		known = &found
		e.known.Store(known)
	}
	return copyOf(*known), nil
}

// copyOf has authentication options of its own: the SDK fills them in for each
// call.
func copyOf(e smithyendpoints.Endpoint) smithyendpoints.Endpoint {
	options, ok := auth.GetAuthOptions(&e.Properties)
	if !ok {
		return e
	}
	own := make([]*auth.Option, len(options))
	for i, option := range options {
		own[i] = &auth.Option{SchemeID: option.SchemeID}
		own[i].IdentityProperties.SetAll(&option.IdentityProperties)
		own[i].SignerProperties.SetAll(&option.SignerProperties)
	}
	var properties smithy.Properties
	properties.SetAll(&e.Properties)
	auth.SetAuthOptions(&properties, own)
	e.Properties = properties
	return e
}
