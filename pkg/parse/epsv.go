package parse

// 229 of RFC 2428 section 3: "229 text (<d><d><d>tcp-port<d>)".

// read229 finds the endpoint of a 229.
func read229(line []byte, i int) (Endpoint, error) {
	failed := ErrSyntax
	for ; i < len(line); i++ {
		if !opensPort(line, i) {
			continue
		}
		port, end, err := tcpPort(line, i+4)
		if err != nil {
			failed = err
			continue
		}
		if end < len(line) && line[end] == line[i+1] {
			return Endpoint{Port: port, Span: Span{i + 4, end}, form: formPort}, nil
		}
	}
	return Endpoint{}, failed
}

func begin229(part []byte, i int) int {
	for ; i < len(part); i++ {
		if opensPort(part, i) {
			return i + 4
		}
	}
	return len(part)
}

// opensPort reports whether what precedes the port of a 229 stands at i: (<d><d><d>.
func opensPort(b []byte, i int) bool {
	if i+3 >= len(b) || b[i] != '(' {
		return false
	}
	d := b[i+1]
	return isDelimiter(d) && !isDigit(d) && b[i+2] == d && b[i+3] == d
}
