package web

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// machinePage is what machine.html shows.
type machinePage struct {
	nodeRow
	FQDN     string
	Hostname string
	Addrs    []string
	Tags     []string
	Key      string
	Expiry   string
	Joined   string
	Typed    string // the new name, as it was typed
	Change   bool   // it can be renamed and removed here
	Approve  bool
}

// node is the node that the path names, if the visitor may know of it.
func (v *visit) node() (*state.Snapshot, *state.Node, error) {
	sn := v.h.o.State.Snapshot()
	id, err := strconv.ParseInt(v.r.PathValue("id"), 10, 64)
	n := sn.Node(tailnet.NodeID(id))
	if err != nil || n == nil || (n.Tagged() || n.User != v.user.ID) && !v.mayManage() {
		return nil, nil, tailnet.Errorf(tailnet.NotFound, "there is no such machine, or it is not yours")
	}
	return sn, n, nil
}

func (v *visit) serveMachine() error {
	if !v.signedIn() {
		return nil
	}
	sn, n, err := v.node()
	if err != nil {
		return err
	}
	notice := ""
	switch {
	case v.r.URL.Query().Get("renamed") != "":
		notice = "The machine is called " + n.Name + " now."
	case v.r.URL.Query().Get("added") == "":
	case !n.Approved:
		notice = n.Name + " was added. An administrator has to approve it before it can reach anything."
	default:
		notice = n.Name + " was added. It comes up by itself; you can close this page."
	}
	return v.showMachine(http.StatusOK, sn, n, notice, "", nil)
}

func (v *visit) showMachine(status int, sn *state.Snapshot, n *state.Node, notice, typed string, faults []fault) error {
	p := machinePage{
		nodeRow: v.nodeRow(sn, n), Hostname: n.Hostname, Tags: n.Tags, Key: n.MachineKey.ShortString(), Expiry: "never",
		Joined: ago(v.h.o.Now(), n.Created), Typed: typed, Change: v.h.o.Nodes != nil,
	}
	if p.Typed == "" {
		p.Typed = n.Name
	}
	p.Approve = p.Change && !n.Authorized && v.mayManage()
	if sn.DNS != nil && sn.DNS.MagicDNS {
		p.FQDN = strings.TrimSuffix(sn.DNS.FQDN(n.Name), ".")
	}
	for _, a := range n.Addrs() {
		p.Addrs = append(p.Addrs, a.String())
	}
	if !n.Expiry.IsZero() {
		p.Expiry = n.Expiry.UTC().Format("2 January 2006, 15:04 UTC")
	}
	return v.render(status, "machine", view{Title: n.Name, Place: "machines", Token: v.token(), Notice: notice, Faults: faults, Page: p})
}

// changeMachine renames, approves or removes a machine.
func (v *visit) changeMachine() error {
	if !v.signedIn() {
		return nil
	}
	sn, n, err := v.node()
	if err != nil {
		return err
	}
	if v.h.o.Nodes == nil {
		return tailnet.Errorf(tailnet.Unavailable, "machines cannot be changed here")
	}
	ctx, here := v.r.Context(), "/machines/"+n.ID.String()
	switch v.r.PostForm.Get("action") {
	case "rename":
		name := strings.TrimSpace(v.r.PostForm.Get("name"))
		err := v.h.o.Nodes.Rename(ctx, v.user, n.ID, name)
		if err == nil {
			v.redirect(here + "?renamed=1")
			return nil
		}
		if status, f, ok := faultOf("name", err); ok && !v.wantsJSON() {
			return v.showMachine(status, sn, n, "", tailnet.CleanText(name), []fault{f})
		}
		return err
	case "approve":
		if !v.mayManage() {
			return tailnet.Errorf(tailnet.Denied, "only an administrator may approve a machine")
		}
		if err := v.h.o.Nodes.Approve(ctx, v.user, n.ID); err != nil {
			return err
		}
		v.redirect(here)
		return nil
	case "remove":
		if v.r.PostForm.Get("sure") != "yes" {
			return v.showMachine(http.StatusBadRequest, sn, n, "", "", []fault{{"sure", "Tick the box if the machine shall really be removed."}})
		}
		if err := v.h.o.Nodes.Delete(ctx, v.user, n.ID); err != nil {
			return err
		}
		return v.render(http.StatusOK, "done", view{Title: "The machine was removed", Place: "machines", Page: donePage{
			Text: n.Name + " is not in this network any more.", Next: "/admin", NextText: "All machines",
		}})
	}
	return tailnet.Errorf(tailnet.Invalid, "the form does not say what to do")
}
