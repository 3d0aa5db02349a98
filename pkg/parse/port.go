package parse

import "net/netip"

// PORT and 227 of RFC 959 announce h1,h2,h3,h4,p1,p2. Blanks around the commas are accepted:
// some programs write "192, 168, 1, 2, 145, 37".

// readPORT reads the argument of PORT, which is all of line from i on.
func readPORT(line []byte, i int) (Endpoint, error) {
	e, err := parseHostPort(line, i)
	if err == nil && e.Span.End != len(line) {
		return Endpoint{}, ErrSyntax
	}
	return e, err
}

func beginPORT(_ []byte, i int) int { return i }

// read227 finds the endpoint of a 227: the first six numbers, separated by commas. They need not stand in
// parentheses, nor anywhere in particular (RFC 1123 section 4.1.2.6).
func read227(line []byte, i int) (Endpoint, error) {
	failed := ErrSyntax
	for ; i < len(line); i++ {
		if !isDigit(line[i]) {
			continue
		}
		e, err := parseHostPort(line, i)
		if err == nil {
			return e, nil
		}
		if err == ErrRange {
			failed = err
		}
		i = listEnd(line, i) // the tail of a list is no list
	}
	return Endpoint{}, failed
}

func begin227(part []byte, i int) int {
	for ; i < len(part); i++ {
		if !isDigit(part[i]) {
			continue
		}
		end := listEnd(part, i)
		if _, err := parseHostPort(part[:end], i); skipBlanks(part, end) == len(part) || err == nil {
			return i
		}
		i = end
	}
	return len(part)
}

// parseHostPort reads h1,h2,h3,h4,p1,p2 from b[i:]; the index after it is returned as
// Span.End. A seventh number makes it ErrSyntax.
func parseHostPort(b []byte, i int) (Endpoint, error) {
	var n [6]byte
	var err error
	start := i
	for k := range n {
		v, end := number(b, i)
		if end == i {
			return Endpoint{}, ErrSyntax
		}
		if v > 255 {
			err = ErrRange
		}
		n[k] = byte(v)
		i = end
		next, ok := nextNumber(b, i)
		switch {
		case k < len(n)-1 && ok:
			i = next
		case k < len(n)-1, ok && next < len(b) && isDigit(b[next]):
			return Endpoint{}, ErrSyntax
		}
	}
	port := uint16(n[4])<<8 | uint16(n[5])
	if port == 0 {
		err = ErrRange
	}
	if err != nil {
		return Endpoint{}, err
	}
	return Endpoint{
		Addr: netip.AddrFrom4([4]byte(n[:4])),
		Port: port,
		Span: Span{start, i},
		form: formHostPort,
	}, nil
}

// nextNumber returns the index after the comma that follows at i, and the blanks around it; false if no comma
// follows.
func nextNumber(b []byte, i int) (int, bool) {
	i = skipBlanks(b, i)
	if i == len(b) || b[i] != ',' {
		return 0, false
	}
	return skipBlanks(b, i+1), true
}

// listEnd returns the index after the list of numbers that begins at i.
func listEnd(b []byte, i int) int {
	for i < len(b) {
		if isDigit(b[i]) {
			i++
		} else if next, ok := nextNumber(b, i); ok {
			i = next
		} else {
			break
		}
	}
	return i
}
