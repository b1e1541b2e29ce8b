package dev

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ownbucket/ownbucket/internal/awslocal"
)

// awslocalStranger is how the customer's own file was written.
var awslocalStranger = awslocal.Stranger{ContentType: "text/plain"}

func (d *demo) table() table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(d.out)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = 0
	style.Box.PaddingLeft = "   "
	t.SetStyle(style)
	return t
}

// printBucket lists what the bucket holds, with the metadata of each object.
func (d *demo) printBucket() {
	t := d.table()
	t.AppendHeader(table.Row{"KEY", "BYTES", "CONTENT TYPE", "METADATA"})
	for _, object := range d.aws.Objects(bucketName) {
		var metadata []string
		for _, name := range slices.Sorted(maps.Keys(object.Metadata)) {
			metadata = append(metadata, name+"="+object.Metadata[name])
		}
		t.AppendRow(table.Row{object.Key, object.Size, object.ContentType, strings.Join(metadata, " ")})
	}
	t.Render()
}

func counted(counts map[string]int) string {
	var parts []string
	for _, api := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[api], api))
	}
	return strings.Join(parts, ", ")
}

// verify compares the bucket, byte for byte, with what it should hold.
func (d *demo) verify(want map[string][]byte) error {
	var wrong error
	got := d.aws.Keys(bucketName)
	for _, key := range got {
		content, expected := want[key]
		if !expected {
			wrong = errors.Join(wrong, fmt.Errorf("the bucket should not hold %q", key))
			continue
		}
		_, stored, err := d.aws.GetDirect(bucketName, key)
		if err != nil {
			return err
		}
		if !bytes.Equal(stored, content) {
			wrong = errors.Join(wrong, fmt.Errorf("%q does not hold the bytes that were uploaded", key))
		}
	}
	for key := range want {
		if !slices.Contains(got, key) {
			wrong = errors.Join(wrong, fmt.Errorf("the bucket should hold %q", key))
		}
	}
	return wrong
}
