package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/explain"
)

func newExplain() *cobra.Command {
	var from *source
	var s *settings
	var nat []explain.Translation
	var clients []netip.Prefix
	var svg string
	var number int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain FILE",
		Short: "Replay a capture and report how each control line would be handled",
		Long: `explain replays a capture (pcap or pcapng; - is standard input) and reports how the helper would
handle every line of its FTP control connections, and whether each data connection was expected.
It needs no privileges. It reads the daemon's configuration file; give it the daemon's flags too.

The filter below captures the control connections on port 21 and the packets that open or
refuse any other TCP connection, but no data; -c ends it after 100000 packets.

Translations by the router are found if the capture has both of its sides, as that of
"tcpdump -i any" does. For a capture of one side only, give them with --nat.`,
		Example: `  tcpdump -i any -s 0 -c 100000 -w ftp.pcap \
    'tcp port 21 or tcp[13] & 6 != 0 or (ip6[6] == 6 and ip6[53] & 6 != 0)'
  nfq-ftphelper explain ftp.pcap
  nfq-ftphelper explain --client 203.0.113.0/24 ftp.pcap
  nfq-ftphelper explain --json ftp.pcap
  nfq-ftphelper explain --svg ftp.svg ftp.pcap
  nfq-ftphelper explain --nat 192.168.1.2=192.0.2.2 client-side.pcap`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("explain takes one capture, such as ftp.pcap")
			}
			return nil
		},
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("connection") {
				switch {
				case number < 1:
					return errors.New("--connection counts from 1")
				case svg == "":
					return errors.New("--connection needs --svg: it selects the connection that is drawn")
				}
			}
			s, err = from.read()
			return err
		},
		RunE: running(func(cmd *cobra.Command) error {
			c := explain.Config{Ports: s.Request.Rules.Ports, NAT: nat, Clients: clients, Engine: s.Engine}
			return explainFile(cmd, c, cmd.Flags().Arg(0), svg, number, asJSON)
		}),
	}
	f := cmd.Flags()
	from = addSettings(f, "ports", "min-port", "loose", "allow", "rate", "advertise", "advertise-except", "hold-time")
	f.Var(translationsFlag{&nat}, "nat", "`REAL=TRANSLATED`: an address of a client or server, and its translation by the router, for a capture of one side only; may be repeated (default none)")
	f.Var(prefixesFlag{&clients}, "client", "explain only the control connections of clients with these `addresses`, such as 203.0.113.101,2001:db8::/64 (default all)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringVar(&svg, "svg", "", "also write ladder diagrams to a `file`")
	f.IntVar(&number, "connection", 0, "draw only the connection with this `number` in the text (default all)")
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"pcap", "pcapng"}, cobra.ShellCompDirectiveFilterFileExt)
	return cmd
}

// explainFile explains one file.
func explainFile(cmd *cobra.Command, c explain.Config, name, svg string, number int, asJSON bool) error {
	var in io.Reader = cmd.InOrStdin()
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	report, err := explain.Explain(in, c)
	if err != nil {
		return fmt.Errorf("%s cannot be explained: %w", name, err)
	}
	if svg != "" {
		drawing, err := report.Ladder(number)
		if err != nil {
			return err
		}
		if err := os.WriteFile(svg, drawing, 0o644); err != nil {
			return err
		}
	}
	if asJSON {
		return report.WriteJSON(cmd.OutOrStdout())
	}
	return report.WriteText(cmd.OutOrStdout())
}

// translationsFlag is a flag that takes a translation each time.
type translationsFlag struct{ list *[]explain.Translation }

// String implements pflag.Value.
func (f translationsFlag) String() string {
	if f.list == nil {
		return ""
	}
	var texts []string
	for _, t := range *f.list {
		texts = append(texts, t.String())
	}
	return strings.Join(texts, ",")
}

// Type implements pflag.Value.
func (f translationsFlag) Type() string { return "REAL=TRANSLATED" }

// Set implements pflag.Value.
func (f translationsFlag) Set(s string) error {
	t, err := explain.ParseTranslation(s)
	if err == nil {
		*f.list = append(*f.list, t)
	}
	return err
}
