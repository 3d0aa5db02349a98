package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

// watchEvery is how often the list is written again.
const watchEvery = 2 * time.Second

func newFlows() *cobra.Command {
	var from *source
	var s *settings
	var asJSON, watch bool
	var view flowView
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the FTP control connections that the daemon helps",
		Long: `flows lists the control connections that the daemon has seen and that are open: who talks to
whom, what this host translates, whether the daemon reads it, what was announced last, and
how many data connections were expected and refused. Connections that one end has closed
already are counted only; --all lists them too.

--filter takes conditions with spaces between them, all of which have to be true: a text that
any column has in it, or FIELD=TEXT. The fields are ` + enumerate(control.FilterFields(), "and") + `;
client and server also take a network.`,
		Example: `  nfq-ftphelper flows --sort refused
  nfq-ftphelper flows --filter "state=encrypted client=203.0.113.0/24"`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: asking(func(ctx context.Context, cmd *cobra.Command) error {
			client, out := control.NewClient(s.Control), cmd.OutOrStdout()
			for {
				flows, err := client.Flows(ctx)
				if err != nil {
					return err
				}
				all := len(flows.Flows)
				flows.Flows = view.of(flows.Flows)
				text := flowTable(flows.Flows, widthOf(out))
				switch {
				case asJSON:
					text = flowJSON(flows)
				case len(flows.Flows) == 0 && all > 0 && view.text != "":
					text = "no connection matches the filter\n"
				case len(flows.Flows) == 0 && all > 0:
					text = "no control connection is open\n"
				}
				if watch && onTerminal(out) {
					text = "\x1b[H\x1b[J" + text // from the screen's top
				}
				if _, err := io.WriteString(out, text); err != nil {
					return err
				}
				if !asJSON {
					if n := flows.Closing; n > 0 && !view.all {
						fmt.Fprintf(cmd.ErrOrStderr(), "%d closing: --all lists them too\n", n)
					}
					if n := flows.Unchecked; n > 0 {
						fmt.Fprintf(cmd.ErrOrStderr(), "%d of them may be over: there was no time to ask conntrack\n", n)
					}
				}
				if !watch {
					return nil
				}
				select {
				case <-time.After(watchEvery):
				case <-ctx.Done():
					return nil
				}
			}
		}),
	}
	from = addSettings(cmd.Flags(), "control")
	cmd.Flags().BoolVar(&view.all, "all", false, "list closing connections too")
	cmd.Flags().Var(filterFlag{&view}, "filter", "list only connections for which all `conditions` are true")
	view.order = control.ByClient
	cmd.Flags().Var(oneOf[control.Order]{&view.order, control.Orders}, "sort", "sort by `column`: client, server, state, transfers or refused")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print the list again every two seconds")
	return cmd
}

// flowView says which connections are listed, and in which order.
type flowView struct {
	all    bool
	filter control.Filter
	text   string // of the filter
	order  control.Order
}

func (v *flowView) of(flows []control.Flow) []control.Flow {
	flows = slices.DeleteFunc(flows, func(f control.Flow) bool { return !v.all && !f.Live() || !v.filter.Matches(&f) })
	slices.SortFunc(flows, func(a, b control.Flow) int { return v.order.Compare(&a, &b) })
	return flows
}

// filterFlag is a flag that takes the filter of a flowView.
type filterFlag struct{ view *flowView }

// String implements pflag.Value.
func (f filterFlag) String() string {
	if f.view == nil {
		return ""
	}
	return f.view.text
}

// Type implements pflag.Value.
func (f filterFlag) Type() string { return "conditions" }

// Set implements pflag.Value.
func (f filterFlag) Set(s string) (err error) {
	f.view.text = s
	f.view.filter, err = control.ParseFilter(s)
	return err
}

// asking turns what a command does with the daemon's answers into what cobra calls. A signal ends
// it, and is no error.
func asking(do func(ctx context.Context, cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return running(func(cmd *cobra.Command) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err := do(ctx, cmd)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func flowJSON(flows control.Flows) string {
	if flows.Flows == nil {
		flows.Flows = []control.Flow{}
	}
	text, err := json.MarshalIndent(flows, "", "  ")
	if err != nil {
		panic(err) // it came as JSON
	}
	return string(text) + "\n"
}

// flowTable writes flows as a table, in lines of so many columns at most if width is not 0.
func flowTable(flows []control.Flow, width int) string {
	if len(flows) == 0 {
		return "no FTP control connections\n"
	}
	// What may be cut off at the right comes last.
	rows := [][]string{{"CLIENT", "SERVER", "STATE", "XFERS", "REFUSED", "LAST", "NAT"}}
	for i := range flows {
		f := &flows[i]
		rows = append(rows, []string{
			f.Client.String(), f.Server.String(), f.State, strconv.Itoa(int(f.Expected)), strconv.Itoa(int(f.Refused)), f.Last.Short(), f.NAT(),
		})
	}
	return truncate(align(rows, 3, 5), width)
}

// truncate cuts lines that have more columns than width, if that is not 0.
func truncate(text string, width int) string {
	if width == 0 {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(ansi.Truncate(strings.TrimSuffix(line, "\n"), width, "…") + "\n")
	}
	return b.String()
}

// align puts cells below each other, those of the columns from right to left-1 at their right edge.
func align(rows [][]string, right, left int) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line.WriteString("  ")
			}
			if right <= i && i < left {
				line.WriteString(padding + cell)
			} else {
				line.WriteString(cell + padding)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
