package web

import "strings"

// browserName is what people call the browser that sends this User-Agent, and the system it runs on: "Firefox on Linux". It is a help to
// recognise one's own sessions, nothing more.
func browserName(agent string) string {
	find := func(pairs ...string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.Contains(agent, pairs[i]) {
				return pairs[i+1]
			}
		}
		return ""
	}
	// The order matters: each of these names those behind it.
	name := find("Edg", "Edge", "OPR/", "Opera", "SamsungBrowser", "Samsung Internet", "Firefox", "Firefox", "FxiOS", "Firefox", "CriOS", "Chrome",
		"Chrome", "Chrome", "Safari", "Safari", "curl", "curl")
	system := find("Android", "Android", "iPhone", "iPhone", "iPad", "iPad", "Windows", "Windows", "Mac OS X", "macOS", "CrOS", "ChromeOS", "Linux", "Linux")
	switch {
	case name == "" && system == "":
		return "an unknown browser"
	case name == "":
		return "a browser on " + system
	case system == "":
		return name
	}
	return name + " on " + system
}
