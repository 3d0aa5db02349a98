package netns

import (
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// What the daemon says of its rules.
const (
	saysRemoved  = "rules removed: new FTP connections are not helped"
	saysRestored = "rules restored"
	saysStay     = "rules removed again, not restored"
	saysChanged  = "FTP may not be helped: another program has changed the rules"
	saysDiffer   = "FTP may not be helped: the rules differ from the settings"
	saysBack     = "rules in place again"
)

// said waits until the daemon has said something n times.
func said(t *testing.T, r *Router, text string, n int) {
	t.Helper()
	err := r.DaemonProcess().WaitOutput(testContext(t, 20*time.Second), func(log string) bool { return strings.Count(log, text) >= n })
	if got := strings.Count(r.DaemonProcess().Output(), text); err != nil || got != n {
		t.Fatalf("the daemon has said %d times, and not %d times, %q: %v", got, n, text, err)
	}
}

// TestRulesVanish removes the daemon's own rules while it runs, as the restart of a firewall does: it warns
// at once, and puts them back, once.
func TestRulesVanish(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: None, Ports: []uint16{21, 2121}})
	router, ctx := lab.ServerRouter(), testContext(t, 2*time.Minute)
	c := startConfigured(t, router, BackEnd{}, "rules: true\nports: 2121\n")
	c.reload("rules: true\nports: 21\n", "msg=reloaded ports=21\n")
	lab.serve(t, script{})
	helped := func() {
		t.Helper()
		client := lab.login(t)
		client.wantFiles(lab.ServerAddress, PASV)
		client.quit()
	}
	helped()
	if log := router.DaemonProcess().Output(); strings.Contains(log, "level=WARN") {
		t.Errorf("of its start and a reload the daemon says\n%s", log)
	}
	// The firewall's own rules come back behind the flush, one by one.
	saved, err := router.Run(ctx, "", "sh", "-c", "nft -s list ruleset | sed '/^table inet nfq_ftphelper {/,/^}/d'")
	must.Do(t, err)
	must.Do(t, router.Nft(ctx, "flush ruleset"))
	said(t, router, saysRemoved, 1)
	must.Do(t, router.Nft(ctx, saved))
	said(t, router, saysRestored, 1)
	must.Do(t, control.NewClient(router.Control()).Ready(ctx))
	helped()

	// Something keeps removing them: that is not fought.
	must.Do(t, router.Nft(ctx, "delete table inet nfq_ftphelper"))
	said(t, router, saysRemoved, 2)
	said(t, router, saysStay, 1)
	if err := control.NewClient(router.Control()).Ready(ctx); err == nil {
		t.Error("without its rules the daemon is ready")
	}
	c.reload("rules: true\nports: 21\n", "msg=reloaded changed=nothing\n")
	helped()

	// Rules that were changed stay so.
	must.Do(t, router.Nft(ctx, "flush chain inet nfq_ftphelper prerouting"))
	said(t, router, saysChanged, 1)

	must.Do(t, router.StopDaemon(ctx))
	log := router.DaemonProcess().Output()
	for text, n := range map[string]int{saysRemoved: 2, saysRestored: 2, saysStay: 1, saysChanged: 1} {
		if got := strings.Count(log, text); got != n {
			t.Errorf("it has said %d times, and not %d times, %q", got, n, text)
		}
	}
}

// TestOthersRulesVanish removes rules that are not the daemon's: it warns, and does not put them back.
func TestOthersRulesVanish(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", None, 21)
	ctx := testContext(t, time.Minute)
	apply := func() {
		t.Helper()
		_, err := host.Run(ctx, "", daemon(t, BackEnd{}).Binary, "rules", "apply")
		must.Do(t, err)
	}
	apply()
	host.runDaemon(t)
	apply() // the same again, which is no change
	for n := range 5 {
		must.Do(t, host.Nft(ctx, "delete table inet nfq_ftphelper"))
		said(t, host, saysRemoved, n+1)
		apply()
		said(t, host, saysBack, n+1)
	}
	must.Do(t, host.Nft(ctx, "delete element inet nfq_ftphelper ports { 21 }"))
	said(t, host, saysDiffer, 1)
	must.Do(t, host.StopDaemon(ctx))
	if log := host.DaemonProcess().Output(); strings.Contains(log, saysRestored) {
		t.Errorf("it has applied rules that are not its own:\n%s", log)
	}
}
