package rules

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed ftp-queue.nft
var ftpQueue string

var (
	definePorts = regexp.MustCompile(`(?m)^define control_ports = .*$`)
	defineQueue = regexp.MustCompile(`(?m)^define queue_number = .*$`)
	queueRule   = regexp.MustCompile(`(?m)^.* to \$queue_number$`)
)

// Text returns ftp-queue.nft, for nft -f, with its two define lines set to c, and
// a rule for each queue if there are several. It needs a kernel with the Native
// statement. It does not judge c: what Apply refuses, nft(8) refuses too.
func Text(c Config) string {
	var list []string
	for _, r := range merge(c.Ports) {
		list = append(list, r.String())
	}
	text := definePorts.ReplaceAllLiteralString(ftpQueue,
		fmt.Sprintf("define control_ports = { %s }", strings.Join(list, ", ")))
	if c.queues() == 1 {
		return defineQueue.ReplaceAllLiteralString(text, fmt.Sprintf("define queue_number = %d", c.Queue))
	}
	text = defineQueue.ReplaceAllLiteralString(text, "# The queues are in the last rules.")
	var fan []string
	for _, r := range queueRules(c, Native) {
		fan = append(fan, r.text)
	}
	return queueRule.ReplaceAllLiteralString(text, "\t\t"+strings.Join(fan, "\n\t\t"))
}
