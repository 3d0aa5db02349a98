package rules

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

var (
	//go:embed ftp-queue.nft
	ftpQueue string
	//go:embed ftp-queue-lean.nft
	ftpQueueLean string
	//go:embed ftp-cthelper.nft
	ftpCTHelper string
	//go:embed ftp-monitor.nft
	ftpMonitor string

	files = map[Ruleset]string{Full: ftpQueue, Lean: ftpQueueLean, CTHelper: ftpCTHelper, Monitor: ftpMonitor}
)

var (
	definePorts = regexp.MustCompile(`(?m)^define control_ports = .*$`)
	defineQueue = regexp.MustCompile(`(?m)^define queue_number = .*$`)
	helperType  = regexp.MustCompile(`(?m)^(\t*)type ".*" protocol tcp$`)
	queueRule   = regexp.MustCompile(`(?m)^(.*)queue flags bypass to \$queue_number$`)
)

// Text returns the file of c.Ruleset for nft -f, with the ports, queues and helper of c, which has to be valid. Except
// for CTHelper, it needs a kernel with the Native statement.
func Text(c Config) string {
	text := definePorts.ReplaceAllLiteralString(files[c.ruleset()],
		fmt.Sprintf("define control_ports = { %s }", FormatPorts(merge(c.Ports), ", ")))
	text = helperType.ReplaceAllString(text, fmt.Sprintf(`${1}type "%s" protocol tcp`, strings.ReplaceAll(c.helper(), "$", "$$")))
	if c.queues() == 1 {
		return defineQueue.ReplaceAllLiteralString(text, fmt.Sprintf("define queue_number = %d", c.Queue))
	}
	text = defineQueue.ReplaceAllLiteralString(text, "# The numbers of the queues are in the rules.")
	var fan []string
	for _, p := range spread(c, Native) {
		fan = append(fan, "${1}"+in(nil, p...).text)
	}
	return queueRule.ReplaceAllString(text, strings.Join(fan, "\n"))
}
