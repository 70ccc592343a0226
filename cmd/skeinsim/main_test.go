package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestRefusals checks that what cannot be run is said, with exit status 2, before anything is started.
func TestRefusals(t *testing.T) {
	for args, want := range map[string]string{
		"":                            "which server?",
		"-url http://127.0.0.1:1 x":   `"x" is not a flag`,
		"-skein a -server-cmd b":      "contradict each other",
		"-skein a -url http://[::1]":  "for a server that runs already",
		"-skein a -pid 1":             "for a server that runs already",
		"-skein a -scenario nonsense": `no scenario "nonsense"; there are: all, join`,
		"-skein a -n 1":               "two clients",
		"-skein /does/not/exist":      "-skein: stat /does/not/exist",
		"-url http://192.0.2.1":       "a pre-auth key is needed",
		"-url http://192.0.2.1 -key k -scenario herd": "not on this machine",
		"-url x -keys-file /does/not/exist":           "-keys-file",
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("skeinsim %s: status %d, stdout %q, stderr %q, want %q", args, code, stdout.String(), stderr.String(), want)
		}
	}
}
