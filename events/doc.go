// Package events is what the CMS core needs to publish to Ownbucket: the five
// events, the rules that they must keep, their JSON Schemas, and a [Publisher]
// that writes them to the outbox within the caller's own transaction.
//
// The names of types, fields and columns are a contract: publishers in other
// languages write the same JSON with one SQL INSERT.
package events
