package rules

import "testing"

// What the probes say is what Apply finds, and they leave nothing behind.
func TestProbe(t *testing.T) {
	newNamespace(t)
	probed, err := ProbeStatement()
	if err != nil {
		t.Fatal(err)
	}
	if err := ProbeCarrier(); err != nil {
		t.Error(err)
	}
	if got := nft(t, "list ruleset"); got != "" {
		t.Errorf("the probes left this behind:\n%s", got)
	}
	if applied := apply(t, example); applied != probed {
		t.Errorf("probed: %s, applied: %s", probed, applied)
	}
}
