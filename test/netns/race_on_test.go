//go:build race

package netns

// raceEnabled says whether this test has the race detector; the daemon gets it, too.
const raceEnabled = true
