package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/ledger"
)

type mediaCommands struct {
	Show mediaShow `cmd:"" help:"Show where a media is stored."`
}

type mediaShow struct {
	Service     string `help:"Service ID." required:""`
	Environment string `help:"Environment ID; production without one."`
	Media       string `help:"Media ID." required:""`
}

type shownMedia struct {
	MediaID     string     `json:"media_id"`
	Key         string     `json:"key,omitempty"`
	URL         string     `json:"url,omitempty"`
	Version     *time.Time `json:"version,omitempty"`
	ContentType string     `json:"content_type,omitempty"`
	Size        *int64     `json:"size,omitempty"`
	ETag        string     `json:"etag,omitempty"`
	Deleted     bool       `json:"deleted"`
}

func (c *mediaShow) Run(ctx context.Context, e *environment) (err error) {
	db, err := e.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	object, err := ledger.New(db).Media(ctx, c.Service, c.Environment, c.Media)
	if err != nil {
		return err
	}
	if object == nil {
		return fmt.Errorf("the ledger has nothing of media %q in environment %q of service %q", c.Media, c.Environment, c.Service)
	}
	version := time.UnixMicro(object.Version).UTC()
	shown := shownMedia{MediaID: object.MediaID, Version: &version, Deleted: !object.Live()}
	if object.Live() {
		settings, err := integration.New(db).Show(ctx, c.Service, c.Environment)
		if err != nil {
			return err
		}
		shown.Key, shown.ContentType, shown.Size, shown.ETag = *object.Key, object.ContentType, &object.Size, object.ETag
		shown.URL = bucket.URL(settings.CustomDomain, settings.Bucket, settings.Region, *object.Key)
	}
	return e.print(shown, func(t table.Writer) {
		fields(t, "media", shown.MediaID, "key", shown.Key, "url", shown.URL, "version", clock(version),
			"content type", shown.ContentType, "size", object.Size, "etag", shown.ETag, "deleted", shown.Deleted)
	})
}
