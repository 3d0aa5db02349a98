package rules

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

func TestProbeAgreesWithApply(t *testing.T) {
	newNamespace(t)
	probed, err := ProbeStatement()
	must.Do(t, err)
	for _, name := range Carriers {
		must.Do(t, ProbeCarrier(name))
	}
	if got := nft(t, "list ruleset"); got != "" {
		t.Errorf("got\n%s\nwant no rules", got)
	}
	if applied := apply(t, example); applied != probed {
		t.Errorf("got %s, want %s as applied", probed, applied)
	}
}

func TestProbeMissingCarrier(t *testing.T) {
	newNamespace(t)
	err := ProbeCarrier("no-such-helper")
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), `no conntrack helper "no-such-helper"`) {
		t.Errorf("got %v, want that there is no such helper", err)
	}
}
