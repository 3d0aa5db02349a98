package kubernetes

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

const composeFile = "../../compose/compose.yaml"

// podmanPath is podman for podman-compose 1.0.3, which gives a container on the host's network another network,
// too (get_net_args): without that one.
const podmanPath = `#!/bin/bash
args=()
while (($#)); do
	case $1 in
	--net | --network-alias) shift ;;
	*) args+=("$1") ;;
	esac
	shift
done
exec podman "${args[@]}"
`

// TestCompose starts the example on a gateway, as podman-compose reads it, and by the command for podman in
// it: the container helps, with the settings of the host, reads them again, has no more privileges than
// it needs, and leaves nothing behind.
func TestCompose(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(composeFile)
	must.Do(t, err)
	command := regexp.MustCompile(`(?m)^#   (podman run (?:.*\\\n)*.*)$`).FindSubmatch(text)
	if command == nil {
		t.Fatalf("%s has no command for podman", composeFile)
	}
	documented := strings.NewReplacer("\\\n#", "").Replace(string(command[1]))
	file, err := filepath.Abs(composeFile)
	must.Do(t, err)
	wrapper := filepath.Join(t.TempDir(), "podman")
	must.Do(t, os.WriteFile(wrapper, []byte(podmanPath), 0o700))
	compose := "podman-compose --podman-path " + wrapper + " --file " + file
	for name, c := range map[string]struct{ up, down string }{
		"podman-compose": {compose + " up --detach", compose + " down"},
		"podman":         {documented, "podman rm --force --time 10 nfq-ftphelper"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tryCompose(t, c.up, c.down)
		})
	}
}

func tryCompose(t *testing.T, up, down string) {
	ctx := testContext(t, 2*time.Minute)
	lab, err := netns.New(ctx, netns.Config{Situation: netns.DNATMasquerade, Family: netns.IPv4, Helper: netns.None, Ports: []uint16{21}})
	must.Do(t, err)
	must.CloseAtEnd(t, lab)
	site, err := netns.StartSite(ctx, lab.Server, netns.IPv4, netns.SiteOptions{})
	must.Do(t, err)
	must.CloseAtEnd(t, site)
	transfer := func(verb netns.Verb, timeout time.Duration) netns.Outcome {
		return netns.Transfer{Program: netns.Curl, Verb: verb, Operation: netns.Download,
			Server: lab.ServerAddress, Site: site, Timeout: timeout}.Run(ctx, lab.Client)
	}
	if outcome := transfer(netns.PASV, time.Second); outcome.Err == nil || !outcome.LoggedIn {
		t.Errorf("without the container, a transfer does not fail as it should: %v\n%s", outcome.Err, outcome.Transcript)
	}

	gateway := lab.ServerRouter()
	m := newMachine(t, gateway.Host)
	m.buildImage(t)
	// A host with a configuration file.
	const etc = `mkdir -p /run/etc/new /run/etc/work
		mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/new,workdir=/run/etc/work overlay /etc
		mkdir -p /etc/nfq-ftphelper`
	configure := func(settings string) {
		t.Helper()
		const replace = `echo "$0" >/etc/nfq-ftphelper/new && mv /etc/nfq-ftphelper/new /etc/nfq-ftphelper/nfq-ftphelper.yaml`
		if _, err := m.on(ctx, "sh", "-euc", replace, settings); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.on(ctx, "sh", "-euc", etc); err != nil {
		t.Fatal(err)
	}
	configure("min-port: 2000")
	run := func(command string) {
		t.Helper()
		// podman-compose may fail and say so on standard error only.
		output, err := m.on(ctx, "sh", "-euc", "{ "+command+"; } 2>&1")
		if err != nil || strings.Contains(output, "Error: ") {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
	}
	run(up)
	names, err := m.podman(ctx, "ps", "--all", "--format", "{{.Names}}")
	must.Do(t, err)
	d := container{m, strings.TrimSpace(names)}
	said := func(what string) {
		t.Helper()
		for !strings.Contains(d.logs(ctx), what) {
			select {
			case <-ctx.Done():
				t.Fatalf("the daemon does not say %q:\n%s", what, d.logs(context.Background()))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	said("file=/etc/nfq-ftphelper/nfq-ftphelper.yaml")
	said("msg=ready")
	for _, verb := range netns.Verbs {
		if outcome := transfer(verb, 10*time.Second); outcome.Err != nil {
			t.Errorf("%s: %v\n%s", verb, outcome.Err, outcome.Transcript)
		}
	}
	if invalid, err := gateway.Invalid(ctx); err != nil || invalid > 0 {
		t.Errorf("conntrack found %d packets invalid, %v", invalid, err)
	}
	d.wantConfined(t)
	flows, err := m.podman(ctx, "exec", d.name, "nfq-ftphelper", "flows", "--all")
	if err != nil || !strings.Contains(flows, ":21") {
		t.Errorf("flows says, %v:\n%s", err, flows)
	}

	configure("min-port: 3000\nqueue: 9")
	if _, err := m.podman(ctx, "kill", "--signal", "HUP", d.name); err != nil {
		t.Fatal(err)
	}
	said("msg=reloaded min-port=3000 needs_restart=queue")
	run(down)
	if tables, err := gateway.Run(ctx, "", "nft", "list", "tables"); err != nil || strings.Contains(tables, "nfq_ftphelper") {
		t.Errorf("the rules outlast the container, %v: %s", err, tables)
	}
	if names, err := m.podman(ctx, "ps", "--all", "--format", "{{.Names}}"); err != nil || names != "" {
		t.Errorf("the container is still there: %v: %s", err, names)
	}
	if _, err := os.Stat("/etc/nfq-ftphelper/new"); err == nil {
		t.Error("this machine has the settings")
	}
}
