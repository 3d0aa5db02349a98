package doctor

import (
	"fmt"
	"strings"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// checkKernel requires Linux 5.16, the first with "@ih" in nftables.
func checkKernel(x *examination) []Finding {
	release, err := x.release()
	if err != nil {
		return unread("the kernel's version", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return unread(fmt.Sprintf("the version in %q", release), err)
	}
	if major < 5 || major == 5 && minor < 16 {
		return problem("Linux "+release, "the queue rules need nftables of Linux 5.16 or later",
			"install a later kernel")
	}
	return ok("Linux %s", release)
}

func checkPrivileges(x *examination) []Finding {
	admin, err := x.netAdmin()
	switch {
	case err != nil:
		return unread("the thread's capabilities", err)
	case !admin:
		return problem("needs CAP_NET_ADMIN: run as root", "rules, queues and conntrack cannot be read without it",
			"run it as root: sudo nfq-ftphelper doctor")
	}
	return ok("CAP_NET_ADMIN")
}

// checkPlan finds how connections get a helper.
func checkPlan(x *examination) []Finding {
	if x.noPlan != nil {
		module := "nf_conntrack_" + rules.Carriers[0]
		if x.request.Helper == backend.CTHelper {
			module = "nfnetlink_cthelper"
		}
		return problem(strings.ReplaceAll(x.noPlan.Error(), "\n", "; "),
			"the kernel accepts expectations only for connections that have a helper",
			"modprobe "+module)
	}
	c := x.plan
	if x.request.Monitor {
		return warning("the daemon only monitors (--monitor) and assigns no helper",
			"it logs what it would do, and opens and changes nothing", "")
	}
	what := fmt.Sprintf("%s %s, %s", c.Helper, c.Rules.Helper, c.Why)
	if c.Helper == backend.Carrier && c.Rules.Helper != rules.Carriers[0] && x.request.Name == "" {
		return warning(what, "this helper is for IPv4 only: FTP over IPv6 is not helped", "modprobe nf_conntrack_"+rules.Carriers[0])
	}
	return ok("%s", what)
}
