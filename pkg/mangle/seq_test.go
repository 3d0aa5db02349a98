package mangle

import "testing"

func TestSeq(t *testing.T) {
	for _, tt := range []struct {
		s, t Seq
		sub  int
	}{
		{0, 0, 0},
		{1, 0, 1},
		{0, 1<<32 - 1, 1},
		{1<<31 - 1, 0, 1<<31 - 1},
		{1 << 31, 1, 1<<31 - 1},
		{5, 1<<32 - 5, 10},
	} {
		for _, swap := range []bool{false, true} {
			s, u, sub := tt.s, tt.t, tt.sub
			if swap {
				s, u, sub = u, s, -sub
			}
			if got := s.Sub(u); got != sub {
				t.Errorf("%d.Sub(%d) = %d, want %d", s, u, got, sub)
			}
			if got := u.Add(sub); got != s {
				t.Errorf("%d.Add(%d) = %d, want %d", u, sub, got, s)
			}
			if got := s.Before(u); got != (sub < 0) {
				t.Errorf("%d.Before(%d) = %v", s, u, got)
			}
		}
	}
}
