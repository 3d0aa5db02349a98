package daemon

import (
	"slices"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

// TestWords says that the lists of package control, which the documents print, have all values of the
// engine, and no others but their own.
func TestWords(t *testing.T) {
	want := func(what string, words []control.Word, values ...string) {
		t.Helper()
		var names []string
		for _, w := range words {
			if w.Meaning == "" || slices.Contains(names, w.Name) {
				t.Errorf("%s: %+v has no meaning, or is listed twice", what, w)
			}
			names = append(names, w.Name)
			if !slices.Contains(values, w.Name) {
				t.Errorf("%s: there is no %q", what, w.Name)
			}
		}
		for _, v := range values {
			if !slices.Contains(names, v) {
				t.Errorf("%s: %q is not listed", what, v)
			}
		}
	}
	kinds := []string{control.KindUsed, control.KindExpired, control.KindClosed, control.KindMissed}
	for k := engine.Tracked; k <= engine.StaysQueued; k++ {
		kinds = append(kinds, k.String())
	}
	want("kinds", control.Kinds, kinds...)
	reasons := []string{"failed"}
	for _, r := range engine.Reasons() {
		reasons = append(reasons, r.Label())
	}
	want("refusals", control.Refusals, reasons...)
	want("states", control.States, engine.StateRead.String(), engine.StateEncrypted.String(), engine.StateIgnored.String(), control.StateClosing)
	want("sequence numbers", control.Sequences, engine.Kernel.String(), engine.SameLength.String(), engine.User.String())
}
