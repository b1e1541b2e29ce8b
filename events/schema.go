package events

import "embed"

// Schemas holds the contract as JSON Schemas (2020-12): one of each event's
// data, named after its type (schema/MediaUploaded.json), and
// schema/Envelope.json of what `ownbucket publish` reads.
//
// They can't say everything: [Parse] also counts bytes where they count
// characters, and refuses duplicate fields and unpaired surrogates.
//
//go:embed schema/*.json
var Schemas embed.FS
