//go:build !unix

package config

// writable: SystemDataDir is a Unix path.
func writable(dir string) bool { return false }
