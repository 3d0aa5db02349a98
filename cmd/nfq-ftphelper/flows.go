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

// watchEvery is the period of --watch.
const watchEvery = 2 * time.Second

func newFlows() *cobra.Command {
	var from *source
	var s *settings
	var asJSON, watch bool
	var view flowView
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the FTP control connections that the daemon helps",
		Long: `flows lists the open control connections: client and server, translated addresses, state, last
announcement, and the numbers of data connections expected and refused. Closing connections are
only counted; --all lists them too.

--filter takes conditions separated by spaces, all of which must be true: TEXT in any field, or
FIELD=TEXT. The fields are ` + enumerate(control.FilterFields(), "and") + `;
client and server also take a network.`,
		Example: `  nfq-ftphelper flows --sort refused
  nfq-ftphelper flows --filter "state=encrypted client=203.0.113.0/24"`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: querying(func(ctx context.Context, cmd *cobra.Command) error {
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
					text = "\x1b[H\x1b[J" + text // from the top of the screen
				}
				if _, err := io.WriteString(out, text); err != nil {
					return err
				}
				if !asJSON {
					if n := flows.Closing; n > 0 && !view.all {
						fmt.Fprintf(cmd.ErrOrStderr(), "%d closing: --all lists them too\n", n)
					}
					if n := flows.Unchecked; n > 0 {
						fmt.Fprintf(cmd.ErrOrStderr(), "%d may be over: there was no time to ask conntrack\n", n)
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
	cmd.Flags().Var(filterFlag{&view}, "filter", "list only connections for which all `conditions` are true, such as state=encrypted (default all)")
	view.order = control.ByClient
	cmd.Flags().Var(oneOf[control.Order]{&view.order, control.Orders}, "sort", "sort by `column`: client, server, state, transfers or refused")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print the list again every two seconds")
	return cmd
}

// flowView selects and sorts connections.
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

// querying turns a command that queries the daemon into a function for cobra. A signal ends the command without an
// error.
func querying(do func(ctx context.Context, cmd *cobra.Command) error) func(*cobra.Command, []string) error {
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
		panic(err) // decoded from JSON
	}
	return string(text) + "\n"
}

// flowTable formats flows as a table with lines of at most width columns, without a limit if width is 0.
func flowTable(flows []control.Flow, width int) string {
	if len(flows) == 0 {
		return "no FTP control connections\n"
	}
	// The least important columns come last, where lines are cut.
	rows := [][]string{{"CLIENT", "SERVER", "STATE", "XFERS", "REFUSED", "LAST", "NAT"}}
	for i := range flows {
		f := &flows[i]
		rows = append(rows, []string{
			f.Client.String(), f.Server.String(), f.State, strconv.Itoa(int(f.Expected)), strconv.Itoa(int(f.Refused)), f.Last.Short(), f.NAT(),
		})
	}
	return truncate(align(rows, 3, 5), width)
}

// truncate cuts lines to width columns; 0 for no limit.
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

// align formats rows in aligned columns; those from right to left-1 are right-aligned.
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
