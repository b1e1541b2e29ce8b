// Command ownbucket-dev is what `ownbucket dev` runs: the whole way of an
// event on embedded stand-ins for AWS.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/ownbucket/ownbucket/internal/dev"
)

func main() {
	var options dev.Options
	parsed := kong.Parse(&options, kong.Name("ownbucket-dev"),
		kong.Description("A demonstration of Ownbucket on embedded stand-ins for S3, STS and CloudFront."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dev.Run(ctx, options, os.Stdout); err != nil {
		fmt.Fprintln(parsed.Stderr, "ownbucket dev:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has run
	}
}
