package worker_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"

	"github.com/ownbucket/ownbucket/events"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/database"
	"github.com/ownbucket/ownbucket/internal/dbtest"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// BenchmarkUpload sets uploads of 16 KiB, over 16 services, beside a loop that
// only puts the same bytes into the same stand-in with the same concurrency.
func BenchmarkUpload(b *testing.B) {
	b.Run("worker/PostgreSQL", func(b *testing.B) { upload(b, dbtest.PostgreSQL(b)) })
	b.Run("worker/SQLite", func(b *testing.B) { upload(b, dbtest.SQLite(b)) })
	b.Run("PutObject alone", putAlone)
}

const services = 16

func upload(b *testing.B, db *database.DB) {
	s := stage.New(b, db)
	s.Config.IntegrationConcurrency = 64
	content := make([]byte, 16<<10)
	_, _ = rand.Read(content)
	source := s.File(string(content))
	var places []*stage.Place
	for i := range services {
		places = append(places, s.Customer(fmt.Sprintf("S%d", i), fmt.Sprintf("bucket-%d", i), "media"))
	}
	lists := make([][]events.Event, services)
	size := int64(len(content))
	for i := range b.N {
		name := fmt.Sprintf("file-%d.bin", i)
		lists[i%services] = append(lists[i%services], events.MediaUploaded{MediaID: name, FileName: name, Size: &size,
			ContentType: "application/octet-stream", Source: source, Version: s.Version()})
	}
	for i, list := range lists {
		if len(list) > 0 {
			places[i].Publish(list...)
		}
	}
	b.ResetTimer()
	s.Work()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func putAlone(b *testing.B) {
	s := stage.New(b, dbtest.SQLite(b))
	p := s.Customer("S1", "bucket-1", "media")
	pool, err := bucket.NewPool(bucket.Options{AWS: s.Config.AWS})
	if err != nil {
		b.Fatal(err)
	}
	target, err := pool.Bucket(p.Integration().Account())
	if err != nil {
		b.Fatal(err)
	}
	content := make([]byte, 16<<10)
	_, _ = rand.Read(content)
	b.ResetTimer()
	var putting sync.WaitGroup
	next := make(chan int)
	for range 64 {
		putting.Go(func() {
			for i := range next {
				if _, err := target.Put(b.Context(), bucket.PutInput{
					Key: fmt.Sprintf("media/file-%d.bin", i), Body: bytes.NewReader(content), Size: int64(len(content)),
					ContentType: "application/octet-stream", Condition: bucket.Condition{IfNoneMatch: true},
					Stamp: bucket.Stamp{ServiceID: "S1", Version: s.Version().Micros()},
				}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	putting.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
