package nfq

import (
	"errors"
	"testing"
)

func TestFindSocket(t *testing.T) {
	const file = `sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
00000000802e1415 0   4711       00000000 0        0        0     2        0        4
0000000040de3550 12  4711       00000000 0        0        0     2        6        1584
0000000040de3551 12  4294963201 00000000 0        0        0     2        0        1585
`
	for portid, want := range map[uint32]netlinkSocket{4711: {"1584", 6}, 4294963201: {"1585", 0}} {
		if got, err := findSocket(file, portid); err != nil || got != want {
			t.Errorf("%d: got %+v, %v", portid, got, err)
		}
	}
	if _, err := findSocket(file, 1); !errors.Is(err, ErrNoSocket) {
		t.Error(err)
	}
}
