package main

import "testing"

func TestParse227(t *testing.T) {
	for line, want := range map[string]string{
		"227 Entering Passive Mode (192,0,2,2,78,33).":   "192.0.2.2:20001",
		"227 (0,0,0,0,0,0)":                              "0.0.0.0:0",
		"227 Entering Passive Mode (192,0,2,2,78).":      "",
		"227 Entering Passive Mode (192,0,2,2,78,33,1).": "",
		"227 Entering Passive Mode (192,0,2,256,78,33).": "",
		"227 Entering Passive Mode (192,0,2,2,78,33":     "",
		"227 Logout.": "",
	} {
		at, err := parse227([]byte(line))
		got := ""
		if err == nil {
			got = at.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q (%v)", line, got, want, err)
		}
	}
}
