package policy

import (
	"fmt"
	"slices"
	"testing"
)

// TestTestsAgainstRecordings: a test of a policy about two nodes, named by their addresses, says what the filter says that was
// recorded for the second.
func TestTestsAgainstRecordings(t *testing.T) {
	asked, open := 0, 0
	for _, c := range loadCases(t) {
		if c.SkipReason != "" || c.Expect.HTTPStatus != 200 || slices.Contains(c.Doubt.Fields, "packet_filter_rules") {
			continue
		}
		got := runCase(&c)
		if got.err != nil {
			continue
		}
		for _, dst := range c.Nodes {
			want, ok := c.Expect.PerNode[dst.Hostname]
			if !ok || len(want.Addresses) > 0 {
				continue
			}
			for _, src := range c.Nodes {
				if src.Hostname == dst.Hostname {
					continue
				}
				for _, port := range []int{22, 80, 443, 5432} {
					facts := reach(want.PacketFilterRules, spans(src.IPv4)[0][0], spans(dst.IPv4)[0][0], map[int]bool{port: true})
					allowed := facts[fmt.Sprintf("proto 6 port %d", port)] || facts[fmt.Sprintf("proto 17 port %d", port)]
					asked++
					to := []word{{text: fmt.Sprintf("%s:%d", dst.IPv4, port)}}
					one := &accessTest{src: word{text: src.IPv4}}
					if one.deny = to; allowed {
						one.accept, one.deny = to, nil
						open++
					}
					if fails := got.c.runTest(one); len(fails) > 0 {
						t.Errorf("%s: %s to %s: the recorded filter says %v; %v\n%s", c.ID, src.Hostname, dst.Hostname, allowed, fails, c.Policy)
						return
					}
				}
			}
		}
	}
	if open < 1000 || asked-open < 1000 {
		t.Errorf("%d questions, %d of them about what is open: the test says little", asked, open)
	}
}
