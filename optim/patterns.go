package optim

// Match says whether a pattern matches the whole of a tensor's name. In a
// pattern * stands for any run of characters, also none and also dots and
// slashes, and ? for one character; all others stand for themselves.
//
// It takes time proportional to the product of the lengths at worst.
func Match(pattern, name string) bool {
	p, n := []rune(pattern), []rune(name)
	star, resume := -1, 0 // the last * seen, and where what follows it was last tried
	i, j := 0, 0
	for j < len(n) {
		switch {
		case i < len(p) && p[i] == '*':
			star, resume = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == n[j]):
			i++
			j++
		case star >= 0: // let the last * take one character more
			resume++
			i, j = star+1, resume
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
