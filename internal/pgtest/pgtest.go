// Package pgtest gives tests a real PostgreSQL: one server per test process,
// one database per test. Benchmarks start a server of their own.
package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	adminDatabase = "postgres"
	emptyTemplate = "template1"
)

var (
	running  = sync.OnceValues(func() (*Server, error) { return Start(forTests...) })
	created  atomic.Int64
	template sync.Map // name -> func() error, which prepares it once
)

// URL gives an empty database that is t's own and dropped after it.
func URL(t testing.TB) string {
	t.Helper()
	return clone(t, emptyTemplate)
}

// Clone gives a database of t's own as prepare leaves it. The first caller
// in this process prepares a template of that name; it must close all its
// connections. The others copy it, which takes some 30 ms.
func Clone(t testing.TB, name string, prepare func(url string) error) string {
	t.Helper()
	once, _ := template.LoadOrStore(name, sync.OnceValue(func() error {
		server, err := running()
		if err != nil {
			return err
		}
		url, err := server.Create(name, emptyTemplate)
		if err != nil {
			return err
		}
		return prepare(url)
	}))
	if err := once.(func() error)(); err != nil {
		t.Fatalf("prepare the template database %s: %v", name, err)
	}
	return clone(t, name)
}

func clone(t testing.TB, template string) string {
	t.Helper()
	server, err := running()
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("test_%d", created.Add(1))
	url, err := server.Create(name, template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Drop(name); err != nil {
			t.Error(err)
		}
	})
	return url
}

// Create makes a database as a copy of the template, "template1" for an empty
// one, and returns its URL. Nobody may be connected to the template.
func (s *Server) Create(name, template string) (url string, err error) {
	if err := s.admin(`CREATE DATABASE ` + quote(name) + ` TEMPLATE ` + quote(template)); err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	return s.url(name), nil
}

// Drop removes a database, and whoever is connected to it.
func (s *Server) Drop(name string) error {
	if err := s.admin(`DROP DATABASE ` + quote(name) + ` WITH (FORCE)`); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

func (s *Server) url(database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.User(superuser),
		Path:     "/" + database,
		RawQuery: url.Values{"host": {s.directory}, "sslmode": {"disable"}}.Encode(),
	}).String()
}

// admin runs one statement as superuser. Databases are made one at a time,
// since two copies of one template may refuse each other.
func (s *Server) admin(statement string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url(adminDatabase))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
