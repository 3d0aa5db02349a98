// Package must ends a test on an error that the test is not about.
package must

import (
	"io"
	"testing"
)

// Do ends the test if err is not nil.
func Do(t testing.TB, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

// CloseAtEnd closes c when the test ends. An error of Close fails the test.
func CloseAtEnd(t testing.TB, c io.Closer) {
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
