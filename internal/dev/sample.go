package dev

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/outbox"
	"github.com/ownbucket/ownbucket/worker"
)

// file is one sample of a real type.
type file struct {
	name, contentType string
	content           []byte
}

func samples() ([]file, error) {
	var pngFile, jpegFile, gzipFile bytes.Buffer
	drawn := image.NewRGBA(image.Rect(0, 0, 64, 64))
	for i := range 64 * 64 {
		drawn.Set(i%64, i/64, color.RGBA{uint8(4 * (i % 64)), uint8(4 * (i / 64)), 128, 255})
	}
	zipped := gzip.NewWriter(&gzipFile)
	_, writing := zipped.Write([]byte(strings.Repeat("ownbucket ", 20000)))
	if err := errors.Join(png.Encode(&pngFile, drawn), jpeg.Encode(&jpegFile, drawn, nil), writing, zipped.Close()); err != nil {
		return nil, fmt.Errorf("make sample files: %w", err)
	}
	return []file{
		{"logo.png", "image/png", pngFile.Bytes()},
		{"写真 2026+春.jpg", "image/jpeg", jpegFile.Bytes()},
		{"100% \"guide\" 📦.txt", "text/plain; charset=utf-8", []byte("How to keep your media in your own bucket.\n")},
		{"archive.tar.gz", "application/gzip", gzipFile.Bytes()},
	}, nil
}

// step is a group of events that are published together, and what it shows.
type step struct {
	title       string
	environment string
	events      []events.Event
	// want maps the bucket's keys to the contents they must have afterwards.
	want func(m map[string][]byte)
}

// plan is a sample of all five events.
func (d *demo) plan(files []file) ([]step, error) {
	version := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	next := func() events.Version {
		version = version.Add(time.Second)
		return events.NewVersion(version)
	}
	upload := func(media string, f file) (events.Event, error) {
		source := media + "-" + hex.EncodeToString([]byte{byte(version.Second())})
		if err := os.WriteFile(filepath.Join(d.files(), source), f.content, 0o600); err != nil {
			return nil, fmt.Errorf("write a sample file: %w", err)
		}
		sum, size := sha256.Sum256(f.content), int64(len(f.content))
		return events.MediaUploaded{MediaID: media, FileName: f.name, ContentType: f.contentType, Size: &size,
			ChecksumSHA256: hex.EncodeToString(sum[:]), Source: "file:" + source, Version: next()}, nil
	}
	var uploads []events.Event
	for i, media := range []string{"logo", "photo", "guide", "archive"} {
		e, err := upload(media, files[i])
		if err != nil {
			return nil, err
		}
		uploads = append(uploads, e)
	}
	newer := file{"logo.png", "image/png", append(slices.Clone(files[0].content), "newer"...)}
	again, err := upload("logo", newer)
	if err != nil {
		return nil, err
	}
	guide := events.MediaRenamed{MediaID: "guide", From: files[2].name, To: "guide.txt", Version: next()}
	gone := events.MediaDeleted{MediaID: "archive", FileName: files[3].name, Version: next()}
	directory := bucket.Directory(environName)
	return []step{
		{"Four media are uploaded", "", uploads, func(m map[string][]byte) {
			for _, f := range files {
				m[prefix+"/"+f.name] = f.content
			}
		}},
		{"One is uploaded anew, one renamed, one deleted", "", []events.Event{again, guide, gone}, func(m map[string][]byte) {
			m[prefix+"/logo.png"] = newer.content
			m[prefix+"/guide.txt"] = files[2].content
			delete(m, prefix+"/"+files[2].name)
			delete(m, prefix+"/"+files[3].name)
		}},
		{"An environment is made from production", environ,
			[]events.Event{events.EnvironmentCreated{SourceEnvironmentID: "", EnvironmentServiceID: environName}},
			func(m map[string][]byte) {
				for _, name := range []string{"logo.png", "guide.txt", files[1].name} {
					m[prefix+"/"+directory+"/"+name] = m[prefix+"/"+name]
				}
			}},
		{"The environment is deleted again", environ, []events.Event{events.EnvironmentDeleted{}}, func(m map[string][]byte) {
			for key := range m {
				if strings.HasPrefix(key, prefix+"/"+directory+"/") {
					delete(m, key)
				}
			}
		}},
	}, nil
}

// show runs the plan and tells about each step.
func (d *demo) show(ctx context.Context) error {
	files, err := samples()
	if err != nil {
		return err
	}
	steps, err := d.plan(files)
	if err != nil {
		return err
	}
	stranger := prefix + "/customers-own-file.txt"
	if _, err := d.aws.PutDirect(bucketName, stranger, []byte("not ours"), awslocalStranger); err != nil {
		return err
	}
	want := map[string][]byte{stranger: []byte("not ours")}
	fmt.Fprintf(d.out, "Bucket %s of a customer, through role %s,\nwith no more than the manual's policy below %s/.\n",
		bucketName, d.customer.RoleARN, prefix)
	for i, s := range steps {
		fmt.Fprintf(d.out, "\n%d. %s\n", i+1, s.title)
		s.want(want)
		if err := d.do(ctx, s, want); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s.title, err)
		}
	}
	if refused := d.aws.Refused(); len(refused) > 0 {
		return fmt.Errorf("the stand-in refused %d calls, the first: %s %s: %s",
			len(refused), refused[0].API, refused[0].Key, refused[0].Reason)
	}
	fmt.Fprintln(d.out, "\nEverything is as it should be; no call was refused, and the customer's own file is untouched.")
	return nil
}

// do publishes a step's events, lets a worker run until idle, and checks and
// prints what came of it.
func (d *demo) do(ctx context.Context, s step, want map[string][]byte) error {
	d.aws.ResetCounts()
	ids, err := d.publish(ctx, s)
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, d.worker)
	if err != nil {
		return err
	}
	if err := w.RunUntilIdle(ctx, time.Minute); err != nil {
		return err
	}
	listed, err := d.outbox.List(ctx, outbox.Filter{EventIDs: ids}, 0)
	if err != nil {
		return err
	}
	t := d.table()
	t.AppendHeader(table.Row{"EVENT", "MEDIA", "STATE", "ATTEMPTS"})
	var wrong error
	for _, e := range listed {
		t.AppendRow(table.Row{e.Type, e.MediaID, e.State + " " + e.Outcome, e.AttemptCount})
		if e.Outcome != outbox.Done {
			wrong = errors.Join(wrong, fmt.Errorf("event %s of media %q is %s: %s", e.Type, e.MediaID, e.State, e.Error))
		}
	}
	t.Render()
	d.printBucket()
	fmt.Fprintf(d.out, "   Calls to AWS: %s\n", counted(d.aws.Counts()))
	return errors.Join(wrong, d.verify(want))
}

func (d *demo) publish(ctx context.Context, s step) ([]string, error) {
	tx, err := d.db.BeginTxx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() // does nothing after the commit
	publisher, err := events.NewPublisher(tx, events.PublisherOptions{Dialect: events.SQLite})
	if err != nil {
		return nil, err
	}
	envelopes := make([]events.Envelope, len(s.events))
	for i, e := range s.events {
		envelopes[i] = events.Envelope{ServiceID: service, EnvironmentID: s.environment, Event: e}
	}
	result, err := publisher.Publish(ctx, envelopes...)
	if err != nil {
		return nil, err
	}
	return result.EventIDs, tx.Commit()
}
