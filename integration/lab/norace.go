//go:build !race

package lab

// raceEnabled reports whether the test binary has the race detector; skein is then built with it.
const raceEnabled = false
