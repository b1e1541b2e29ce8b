package main

import (
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// formats are the ways to print the table.
var formats = map[string]func(io.Writer, []row, map[key]float64){
	"table": func(w io.Writer, rows []row, figures map[key]float64) {
		fmt.Fprintln(w, layOut(rows, figures).Render())
	},
	"markdown": func(w io.Writer, rows []row, figures map[key]float64) {
		fmt.Fprintln(w, layOut(rows, figures).RenderMarkdown())
	},
}

func layOut(rows []row, figures map[key]float64) table.Writer {
	t := table.NewWriter()
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"scenario", "subject", "events", "figure", "unit", "ratio to the peer", "target", "met", "what limits it"})
	for _, r := range rows {
		ratio := ""
		if of := r.ratio(figures); of != 0 {
			ratio = fmt.Sprintf("%.2f × %s", of, r.Peer)
		}
		met := ""
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "no"}[*r.Met]
		}
		t.AppendRow(table.Row{r.Scenario, r.Subject, r.Events, readable(r.Figure), r.Unit, ratio, r.Target, met, r.Limit})
	}
	t.SetColumnConfigs([]table.ColumnConfig{{Name: "events", Align: text.AlignRight}, {Name: "figure", Align: text.AlignRight}})
	return t
}

// readable has three digits that count, or all before the point.
func readable(figure float64) string {
	switch {
	case figure == 0:
		return "0"
	case math.Abs(figure) >= 100:
		return strconv.FormatFloat(figure, 'f', 0, 64)
	default:
		return strconv.FormatFloat(figure, 'g', 3, 64)
	}
}
