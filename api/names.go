package api

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// What we accept at the most; nothing outside asks for these numbers.
const (
	maxText = 256 // bytes of free text, such as a display name
	maxTag  = 64  // bytes behind "tag:"
	maxTags = 64  // of one node or key
)

// findUser is the user that ref names: by id, or else by name.
func findUser(sn *state.Snapshot, ref Ref) (*tailnet.User, error) {
	if ref == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "no namespace is given: name one, or give its id")
	}
	if id, ok := ref.id(); ok && tailnet.UserID(id) != tailnet.TaggedDevices {
		if u := sn.User(tailnet.UserID(id)); u != nil {
			return u, nil
		}
	}
	if u := sn.UserByName(strings.ToLower(string(ref))); u != nil {
		return u, nil
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no namespace %q", clip(string(ref)))
}

// findOwner is the id of the user that ref names; 0 for an empty ref, which chooses nobody in particular.
func findOwner(sn *state.Snapshot, ref Ref) (tailnet.UserID, error) {
	if ref == "" {
		return 0, nil
	}
	u, err := findUser(sn, ref)
	if err != nil {
		return 0, err
	}
	return u.ID, nil
}

// findNode is the node that ref names: by id, or else by MagicDNS name, address or stable id.
func findNode(sn *state.Snapshot, ref Ref) (*state.Node, error) {
	if ref == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "no node is given: name one, or give its id")
	}
	if id, ok := ref.id(); ok {
		if n := sn.Node(tailnet.NodeID(id)); n != nil {
			return n, nil
		}
	}
	if n := sn.NodeByName(label(sn, string(ref))); n != nil {
		return n, nil
	}
	if a, err := netip.ParseAddr(string(ref)); err == nil {
		if n := sn.NodeByAddr(a); n != nil {
			return n, nil
		}
	}
	for _, n := range sn.Nodes() {
		if n.StableID == string(ref) {
			return n, nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no node %q", clip(string(ref)))
}

// label is the MagicDNS label in name, which may be a full name with the base domain behind it.
func label(sn *state.Snapshot, name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if sn.DNS != nil && sn.DNS.Base != "" {
		name = strings.TrimSuffix(name, "."+sn.DNS.Base)
	}
	return name
}

// nodeIn is the node inside an update: it may have gone since it was found.
func nodeIn(tx *state.Tx, id tailnet.NodeID) (*tailnet.Node, error) {
	if n := tx.Node(id); n != nil {
		return n, nil
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "node %d was deleted meanwhile", id)
}

// userIn is the user inside an update: it may have gone since it was found.
func userIn(tx *state.Tx, id tailnet.UserID) (*tailnet.User, error) {
	if u := tx.User(id); u != nil {
		return u, nil
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "namespace %d was deleted meanwhile", id)
}

// checkText returns nil if s may be stored as free text; what names it in the error.
func checkText(what, s string) error {
	if len(s) > maxText {
		return tailnet.Errorf(tailnet.Invalid, "the %s is longer than %d bytes", what, maxText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return tailnet.Errorf(tailnet.Invalid, "the %s %q has control characters in it", what, s)
	}
	return nil
}

// checkEmail returns nil if s is empty or looks like a mail address; clients show it as the login name.
func checkEmail(s string) error {
	if err := checkText("mail address", s); err != nil || s == "" {
		return err
	}
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || domain == "" || strings.ContainsAny(s, " <>\"") || strings.Contains(domain, "@") {
		return tailnet.Errorf(tailnet.Invalid, "%q is not a mail address such as me@example.org", s)
	}
	return nil
}

// parseTags checks tags and returns them sorted, without repetitions. "tag:" may be left out.
func parseTags(tags []string) ([]string, error) {
	var out []string
	for _, t := range tags {
		t = strings.TrimSpace(t)
		if t != "" && !strings.HasPrefix(t, "tag:") {
			t = "tag:" + t
		}
		if err := tailnet.CheckTag(t); err != nil {
			return nil, err
		}
		if len(t) > len("tag:")+maxTag {
			return nil, tailnet.Errorf(tailnet.Invalid, "the tag %q is longer than %d characters", clip(t), maxTag)
		}
		out = append(out, t)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > maxTags {
		return nil, tailnet.Errorf(tailnet.Invalid, "%d tags are too many: at most %d are possible", len(out), maxTags)
	}
	return out, nil
}
