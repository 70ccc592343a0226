package policy

import (
	"strings"
	"testing"
)

// TestConditions: every operator, on attributes that are set and that are not.
func TestConditions(t *testing.T) {
	attrs := map[string]string{
		"node:os": "macos", "node:tsVersion": "1.80.3", "node:osVersion": "14.4.1", "node:tsAutoUpdate": "true", "node:tsStateEncrypted": "false",
		"custom:tier": "gold", "custom:score": "7.5", "custom:debt": "-5", "custom:big": "1000000",
	}
	for text, want := range map[string]bool{
		"node:os == 'macos'": true, `node:os == "macos"`: true, "node:os=='macos'": true, "node:os == 'linux'": false, "node:os != 'linux'": true, "node:os != 'macos'": false,
		"node:os IN ['macos', 'linux']": true, "node:os IN ['linux']": false, "node:os NOT IN ['linux', 'windows']": true, "node:os NOT IN ['macos']": false,
		"node:tsVersion >= '1.80'": true, "node:tsVersion >= '1.80.3'": true, "node:tsVersion > '1.80.3'": false, "node:tsVersion > '1.9'": true,
		"node:tsVersion < '1.100'": true, "node:tsVersion <= '1.80.2'": false, "node:osVersion >= '14'": true, "node:osVersion < '14.4'": false,
		"node:tsAutoUpdate": true, "node:tsStateEncrypted": false, "node:tsAutoUpdate == true": true, "node:tsStateEncrypted == false": true, "node:tsStateEncrypted != true": true,
		"custom:tier IS SET": true, "custom:none IS SET": false, "custom:none NOT SET": true, "custom:tier NOT SET": false,
		"custom:none == 'x'": false, "custom:none != 'x'": true, "custom:none IN ['x']": false, "custom:none NOT IN ['x']": true, "custom:none": false,
		"custom:none < '1'": false, "custom:none >= '1'": false,
		"custom:score > 7.25": true, "custom:score >= 7.5": true, "custom:score < 10": true, "custom:debt < -4.5": true, "custom:debt > -7": true, "custom:debt < 3": true,
		"custom:big >= 999999": true, "custom:big < 1000001": true, "custom:tier IN ['gold',\"silver\"]": true,
	} {
		c, err := parseCondition(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := c.holds(attrs); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
	for _, text := range []string{"", "node:os = 'x'", "node:os === 'x'", "os == 'x'", "node:os == x", "node:os == 'x' && node:os == 'y'", "node:os IN 'x'", "node:os IN []", "node:os IS SET x", "node:os LIKE 'x'", "node:os == 'it''s'", "node:os in ['x']"} {
		if _, err := parseCondition(text); err == nil || !strings.Contains(err.Error(), "is not a condition such as") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestPostureAttributesOfTests: numbers stay what is written, and lists are no values.
func TestPostureAttributesOfTests(t *testing.T) {
	const text = `{
		"postures": {"posture:rich": ["custom:money >= 1000000"]},
		"tagOwners": {"tag:vault": []},
		"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:vault:443"], "srcPosture": ["posture:rich"]}],
		"tests": [
			{"src": "bob@example.com", "srcPostureAttrs": {"custom:money": 12345678}, "accept": ["tag:vault:443"]},
			{"src": "bob@example.com", "srcPostureAttrs": {"custom:money": "999999"}, "deny": ["tag:vault:443"]},
		],
	}`
	c, _ := small(t, text, Options{})
	if err := c.Test(); err != nil {
		t.Error(err)
	}
	if _, err := Parse([]byte(strings.Replace(text, "12345678", "[1]", 1))); err == nil || !strings.Contains(err.Error(), "tests[0].srcPostureAttrs") {
		t.Error(err)
	}
}
