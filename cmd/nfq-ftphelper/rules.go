package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

func newRules() *cobra.Command {
	var c rules.Config
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print, apply, check or remove the rules that fill the queue",
		Long: `The rules are one table of nftables, inet nfq_ftphelper, and touch nothing else. They
give FTP control connections a conntrack helper and queue those of their packets that
carry text.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	rulesFlags(cmd.PersistentFlags(), &c)
	add := func(use, short string, do func(cmd *cobra.Command) error) {
		cmd.AddCommand(&cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: running(do)})
	}
	add("print", "Write the rules in the language of nft, for nft -f", func(cmd *cobra.Command) error {
		_, err := fmt.Fprint(cmd.OutOrStdout(), rules.Text(c))
		return err
	})
	add("apply", "Put the rules into the kernel, in one transaction", func(cmd *cobra.Command) error {
		statement, err := rules.Apply(c)
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is in place: ports %s go to %s (%s)\n",
				portList(c.Ports), queueList(c), statement)
		}
		return err
	})
	add("check", "Say whether the rules are in the kernel as they should be", func(cmd *cobra.Command) error {
		err := rules.Check(c)
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is as it should be: ports %s, and any that were added, go to %s\n",
				portList(c.Ports), queueList(c))
		}
		return err
	})
	add("remove", "Take the rules out of the kernel", func(*cobra.Command) error {
		return rules.Remove()
	})
	return cmd
}

// rulesFlags adds the flags that say what the rules look like.
func rulesFlags(f *pflag.FlagSet, c *rules.Config) {
	ports := portsFlag{&c.Ports}
	if err := ports.Set(rules.DefaultPorts); err != nil {
		panic(err)
	}
	f.Var(ports, "ports", "control `ports` that the rules queue, such as 21,2121,2200-2210")
	f.Uint16Var(&c.Queue, "queue", rules.DefaultQueue, "`number` of the queue, 0 to 65535")
	f.Uint16Var(&c.Queues, "queues", 1, "how many queues (`count`): that one and those behind it, for as many processors")
}

// portsFlag is a flag that takes a list of ports.
type portsFlag struct{ ports *[]rules.PortRange }

// String implements pflag.Value.
func (p portsFlag) String() string {
	if p.ports == nil {
		return ""
	}
	return portList(*p.ports)
}

// Type implements pflag.Value.
func (p portsFlag) Type() string { return "ports" }

// Set implements pflag.Value.
func (p portsFlag) Set(s string) error {
	ports, err := rules.ParsePorts(s)
	if err == nil {
		*p.ports = ports
	}
	return err
}

func portList(ports []rules.PortRange) string {
	var texts []string
	for _, r := range ports {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, ",")
}

func queueList(c rules.Config) string {
	if c.Queues <= 1 {
		return fmt.Sprintf("queue %d", c.Queue)
	}
	return fmt.Sprintf("queues %d to %d", c.Queue, int(c.Queue)+int(c.Queues)-1)
}
