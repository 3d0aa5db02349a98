package rules

import (
	"reflect"
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []PortRange
		err  string
	}{
		{in: "21", want: []PortRange{{21, 21}}},
		{in: " 21, 2121 ,2200 - 2210", want: []PortRange{{21, 21}, {2121, 2121}, {2200, 2210}}},
		{in: "2121,21", want: []PortRange{{21, 21}, {2121, 2121}}},
		{in: "21,21,20-30,25-40", want: []PortRange{{20, 40}}},
		{in: "21,22,23-30", want: []PortRange{{21, 30}}},
		{in: "20-40,21-22", want: []PortRange{{20, 40}}},
		{in: "65535,1-65534", want: []PortRange{{1, 65535}}},
		{in: "", err: "a port is missing"},
		{in: "21,", err: "a port is missing"},
		{in: "0", err: `"0" is not a port`},
		{in: "0-21", err: `"0" is not a port`},
		{in: "65536", err: `"65536" is not a port`},
		{in: "21-", err: "a port is missing"},
		{in: "-21", err: "a port is missing"},
		{in: "1-2-3", err: `"2-3" is not a port`},
		{in: "ftp", err: `"ftp" is not a port`},
		{in: "30-20", err: "30-20: the range ends before it begins"},
		{in: strings.Repeat("x", 3), err: `"xxx" is not a port`},
	} {
		got, err := ParsePorts(tt.in)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("ParsePorts(%q): got error %v, want %q", tt.in, err, tt.err)
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("ParsePorts(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestParsePortsTooMany(t *testing.T) {
	var ports []string
	for p := 1; p <= 2*maxRanges+1; p += 2 {
		ports = append(ports, PortRange{uint16(p), uint16(p)}.String())
	}
	if _, err := ParsePorts(strings.Join(ports, ",")); err == nil {
		t.Errorf("%d ranges: got no error, want one", len(ports))
	}
	if _, err := ParsePorts(strings.Join(ports[1:], ",")); err != nil {
		t.Errorf("%d ranges: got %v, want no error", len(ports)-1, err)
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"21", "21,2121,2200-2210", "65535,1-65534", "30-20", " 1 - 2 ,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParsePorts(s)
		if err != nil {
			return
		}
		var written []string
		for i, r := range got {
			if r.First == 0 || r.Last < r.First {
				t.Fatalf("%q: got %v, want a range of ports", s, r)
			}
			if i > 0 && int(r.First) <= int(got[i-1].Last)+1 {
				t.Fatalf("%q: got %v and %v, want ranges that do not touch", s, got[i-1], r)
			}
			written = append(written, r.String())
		}
		again, err := ParsePorts(strings.Join(written, ","))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%q: got %v, %v, want %v", s, again, err, got)
		}
		if back := intervals(elements(got)); !reflect.DeepEqual(back, got) {
			t.Fatalf("%q: got %v from the set's elements, want %v", s, back, got)
		}
	})
}
