package daemon

import (
	"slices"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

// TestWords checks that the words which package control names by itself are in the lists.
func TestWords(t *testing.T) {
	for _, c := range []struct {
		list  []control.Word
		words []string
	}{
		{control.Kinds, []string{control.KindUsed, control.KindExpired, control.KindClosed, control.KindMissed}},
		{control.States, []string{control.StateClosing}},
		{control.Expiries, []string{control.ExpiredTimeout, control.ExpiredDropped, control.ExpiredReplaced, control.ExpiredClosed, control.ExpiredDeleted}},
		{control.RuleSources, []string{control.RulesApplied, control.RulesInPlace, control.RulesDifferent}},
		{control.Sequences, []string{"kernel", "same-length"}}, // see flowOf
	} {
		for _, word := range c.words {
			if !slices.ContainsFunc(c.list, func(w control.Word) bool { return w.Name == word }) {
				t.Errorf("got %v, want %q in it", c.list, word)
			}
		}
	}
}
