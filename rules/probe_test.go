package rules

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// What the probes say is what Apply finds, and they leave nothing behind.
func TestProbe(t *testing.T) {
	newNamespace(t)
	probed, err := ProbeStatement()
	must.Do(t, err)
	for _, name := range Carriers {
		must.Do(t, ProbeCarrier(name))
	}
	if got := nft(t, "list ruleset"); got != "" {
		t.Errorf("the probes left this behind:\n%s", got)
	}
	if applied := apply(t, example); applied != probed {
		t.Errorf("probed: %s, applied: %s", probed, applied)
	}
}

func TestProbeMissingCarrier(t *testing.T) {
	newNamespace(t)
	err := ProbeCarrier("no-such-helper")
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), `no conntrack helper "no-such-helper"`) {
		t.Errorf("without any: %v", err)
	}
}
