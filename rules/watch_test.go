package rules

import (
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestWatch changes the table and others, and wants each change reported for the right table.
func TestWatch(t *testing.T) {
	newNamespace(t)
	w, err := NewWatch()
	must.Do(t, err)
	ended := make(chan error, 1)
	go func() { ended <- w.Run() }()
	reported := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: got no report, want one", what)
		}
	}
	quiet := func() {
		t.Helper()
		select {
		case <-w.Own():
			t.Fatal("got a report for the own table, want none for another one")
		default:
		}
	}
	nft(t, "table inet other { set ports { type inet_service; }; chain nfq_ftphelper { }; }")
	reported("another table", w.Any())
	nft(t, "table ip nfq_ftphelper { }")
	reported("another family", w.Any())
	quiet()
	apply(t, example)
	reported("the table", w.Own())
	reported("the table", w.Any())
	for _, change := range []string{
		"add element inet nfq_ftphelper ports { 2122 }", "add rule inet nfq_ftphelper prerouting accept",
		"flush chain inet nfq_ftphelper control", "delete table inet nfq_ftphelper",
	} {
		for len(w.Own())+len(w.Any()) > 0 { // of the change before
			select {
			case <-w.Own():
			case <-w.Any():
			}
		}
		nft(t, change)
		reported(change, w.Own())
		reported(change, w.Any())
	}
	must.Do(t, w.Close())
	must.Do(t, <-ended)
}
