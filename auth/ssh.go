package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// SSHStore keeps SSH checks, decided ones too. db.DB is the one in use.
type SSHStore interface {
	// PutSSHCheck stores c, in place of one with the same id.
	PutSSHCheck(ctx context.Context, c *tailnet.SSHCheck) error
	// DecideSSHCheck stores the decision in c if there was none yet, and reports whether that was so.
	DecideSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (bool, error)
	// SSHCheck is the check with this id; a NotFound error if there is none.
	SSHCheck(ctx context.Context, id tailnet.ID, check string) (*tailnet.SSHCheck, error)
	// LastSSHCheck is the newest approved check with the Tailnet, Src, Dst, SrcUser and SSHUser of c, or nil.
	LastSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (*tailnet.SSHCheck, error)
	// SSHChecks are the checks made after t that nobody has decided, oldest first.
	SSHChecks(ctx context.Context, id tailnet.ID, t time.Time) ([]*tailnet.SSHCheck, error)
	// DeleteSSHChecksBefore removes checks made before t and returns how many those were.
	DeleteSSHChecksBefore(ctx context.Context, t time.Time) (int, error)
}

const (
	// DefaultSSHCheckTTL is longer than a node waits for one answer, which is 30 minutes (tailssh.conn.fetchSSHAction).
	DefaultSSHCheckTTL = time.Hour

	sshHold       = 25 * time.Minute   // for one question: less than a node waits
	sshPoll       = 2 * time.Second    // between looks at what another server may have stored, should its word be lost
	keepSSHChecks = 8 * 24 * time.Hour // longer than any checkPeriod
	maxSSHChecks  = 50                 // waiting at once for sessions on one node
	maxSSHUser    = 255                // bytes
)

// SSHQuestion is what a node asks when a session wants to begin. Its Src, SSHUser and LocalUser are the node's word.
type SSHQuestion struct {
	Src, Dst           tailnet.NodeID
	SSHUser, LocalUser string
	Check              string // id of the check that it was told to ask about; empty at first
}

// SSH answers a node that asks whether a session on it may begin; the caller has made sure that Dst is that node. With a Check it waits
// until a person decides or the policy does, and at the most as long as a node waits for an answer. Errors are passing trouble: the
// node asks again.
func (a *Auth) SSH(ctx context.Context, q SSHQuestion) (*tailcfg.SSHAction, error) {
	if len(q.SSHUser) > maxSSHUser || len(q.LocalUser) > maxSSHUser ||
		q.SSHUser != tailnet.CleanText(q.SSHUser) || q.LocalUser != tailnet.CleanText(q.LocalUser) {
		return sshReject("The name of the user has characters that cannot be shown, or too many."), nil
	}
	c, action := a.sshPolicy(q)
	if action != nil {
		return action, nil
	}
	if q.Check != "" {
		return a.waitSSH(ctx, q)
	}
	return a.beginSSH(ctx, q, c)
}

// sshPolicy is what the policy of this moment says: an action, or the check that has to be passed first.
func (a *Auth) sshPolicy(q SSHQuestion) (*tailnet.SSHCheck, *tailcfg.SSHAction) {
	sn := a.st.Snapshot()
	src, dst := sn.Node(q.Src), sn.Node(q.Dst)
	if src == nil || dst == nil {
		return nil, sshReject("The node that this session comes from is not in this network any more.")
	}
	d := sn.Policy.SSH(src.Node, dst.Node, q.SSHUser)
	switch {
	case !d.Allowed:
		return nil, sshReject("The policy of this network does not permit this session.")
	case !d.Check:
		return nil, d.Action
	}
	return &tailnet.SSHCheck{
		Tailnet: a.o.Tailnet, Src: q.Src, Dst: q.Dst, SrcUser: src.User, SSHUser: q.SSHUser, LocalUser: q.LocalUser, Period: d.Period,
	}, nil
}

func (a *Auth) sshAccept(q SSHQuestion) *tailcfg.SSHAction {
	sn := a.st.Snapshot()
	if src, dst := sn.Node(q.Src), sn.Node(q.Dst); src != nil && dst != nil {
		if d := sn.Policy.SSH(src.Node, dst.Node, q.SSHUser); d.Allowed {
			return d.Action
		}
	}
	return sshReject("The policy of this network does not permit this session any more.")
}

// beginSSH lets a session like one that was confirmed lately begin, and makes others wait.
func (a *Auth) beginSSH(ctx context.Context, q SSHQuestion, c *tailnet.SSHCheck) (*tailcfg.SSHAction, error) {
	a.sshMu.Lock()
	defer a.sshMu.Unlock()
	now := a.o.Now()
	if c.Period > 0 {
		last, err := a.o.Store.LastSSHCheck(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("looking for a confirmed SSH session: %w", err)
		}
		// What was confirmed for one session stays so, even if the policy has become more generous since.
		if last != nil && now.Before(last.Approved.Add(min(last.Period, c.Period))) {
			return a.sshAccept(q), nil
		}
	}
	waiting, err := a.SSHChecks(ctx)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, w := range waiting {
		if w.Dst == c.Dst {
			n++
		}
		if c.Period > 0 && sameSession(w, c) && w.Period == c.Period && w.LocalUser == c.LocalUser {
			return a.holdSSH(q, w, true), nil // a second try: the command on the screen stays good
		}
	}
	if n >= maxSSHChecks {
		return sshReject("Too many sessions on this node wait to be confirmed. Try again later."), nil
	}
	c.ID, c.Created = randomText(24), now
	if err := a.o.Store.PutSSHCheck(ctx, c); err != nil {
		return nil, fmt.Errorf("storing an SSH check: %w", err)
	}
	a.log.Info("SSH session waits to be confirmed", "node", c.Dst, "src", c.Src, "ssh_user", c.SSHUser)
	return a.holdSSH(q, c, true), nil
}

func sameSession(a, b *tailnet.SSHCheck) bool {
	return a.Tailnet == b.Tailnet && a.Src == b.Src && a.Dst == b.Dst && a.SrcUser == b.SrcUser && a.SSHUser == b.SSHUser
}

// holdSSH makes the node ask again, about c; aloud: the person at the other end is told what to do.
func (a *Auth) holdSSH(q SSHQuestion, c *tailnet.SSHCheck, aloud bool) *tailcfg.SSHAction {
	v := url.Values{"local_user": {q.LocalUser}, "ssh_user": {q.SSHUser}, "check": {c.ID}}
	out := &tailcfg.SSHAction{HoldAndDelegate: a.o.ServerURL + "/machine/ssh/action/" + strconv.FormatInt(int64(q.Src), 10) + "/to/" +
		strconv.FormatInt(int64(q.Dst), 10) + "?" + v.Encode()}
	if aloud {
		out.Message = "# This session has to be confirmed. Sign in and confirm it at\r\n" +
			"#\r\n#     " + a.o.ServerURL + "/ssh/" + c.ID + "\r\n" +
			"#\r\n# or let an administrator do it, there or on the server:\r\n" +
			"#\r\n#     skein auth approve " + c.ID + "\r\n#\r\n"
	}
	return out
}

func sshReject(why string) *tailcfg.SSHAction {
	return &tailcfg.SSHAction{Reject: true, Message: why + "\r\n"}
}

// waitSSH waits for a decision about q.Check.
func (a *Auth) waitSSH(ctx context.Context, q SSHQuestion) (*tailcfg.SSHAction, error) {
	hold := time.NewTimer(sshHold)
	defer hold.Stop()
	poll := time.NewTicker(sshPoll)
	defer poll.Stop()
	for {
		decided := a.nextDecision() // before the look at the store, so that none is missed
		now, action := a.sshPolicy(q)
		if action != nil {
			return action, nil
		}
		c, err := a.o.Store.SSHCheck(ctx, a.o.Tailnet, q.Check)
		switch {
		case tailnet.CodeOf(err) == tailnet.NotFound, err == nil && !sameSession(c, now):
			return sshReject("Nobody is asked about this session any more. Open it once more."), nil
		case err != nil:
			return nil, fmt.Errorf("reading an SSH check: %w", err)
		case c.Denied:
			return sshReject("This session was denied."), nil
		// The answer may have been lost on its way, so an approval is good for as long as the session could have waited for it.
		case !c.Approved.IsZero() && a.o.Now().Sub(c.Approved) < a.o.SSHCheckTTL:
			return a.sshAccept(q), nil
		case a.o.Now().Sub(c.Created) >= a.o.SSHCheckTTL:
			return sshReject("Nobody has confirmed this session in time."), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-hold.C:
			return a.holdSSH(q, c, false), nil
		case <-decided:
		case <-poll.C:
		}
	}
}

// nextDecision is closed when somebody decides about any check.
func (a *Auth) nextDecision() <-chan struct{} {
	a.wakeMu.Lock()
	defer a.wakeMu.Unlock()
	return a.decided
}

// SSHChecks are the sessions that wait for a person, oldest first.
func (a *Auth) SSHChecks(ctx context.Context) ([]*tailnet.SSHCheck, error) {
	out, err := a.o.Store.SSHChecks(ctx, a.o.Tailnet, a.o.Now().Add(-a.o.SSHCheckTTL))
	if err != nil {
		return nil, fmt.Errorf("reading the SSH sessions that wait: %w", err)
	}
	return out, nil
}

// SSHCheck is the session that waits under this id; a NotFound error if there is none, or its time is over.
func (a *Auth) SSHCheck(ctx context.Context, id string) (*tailnet.SSHCheck, error) {
	c, err := a.o.Store.SSHCheck(ctx, a.o.Tailnet, id)
	if tailnet.CodeOf(err) == tailnet.NotFound || err == nil && c.Waiting() && a.o.Now().Sub(c.Created) >= a.o.SSHCheckTTL {
		return nil, tailnet.Errorf(tailnet.NotFound, "no SSH session waits under this id, or it has waited for more than %s; "+
			"\"skein auth list\" shows those that wait", a.o.SSHCheckTTL)
	}
	if err != nil {
		return nil, fmt.Errorf("reading an SSH check: %w", err)
	}
	return c, nil
}

// ApproveSSH lets a session begin that waits. The policy may refuse it nevertheless if it has changed. It returns the check
// as it then is. The error is NotFound if nothing waits under the id, and Conflict if it was decided before.
func (a *Auth) ApproveSSH(ctx context.Context, id, by string) (*tailnet.SSHCheck, error) {
	return a.decideSSH(ctx, id, by, true)
}

// DenySSH ends a session that waits. Its errors are those of ApproveSSH.
func (a *Auth) DenySSH(ctx context.Context, id, by string) (*tailnet.SSHCheck, error) {
	return a.decideSSH(ctx, id, by, false)
}

func (a *Auth) decideSSH(ctx context.Context, id, by string, approve bool) (*tailnet.SSHCheck, error) {
	c, err := a.SSHCheck(ctx, id)
	if err != nil {
		return nil, err
	}
	first := c.Waiting()
	if first {
		c.DecidedBy, c.Denied = tailnet.CleanText(by), !approve
		if approve {
			c.Approved = a.o.Now()
		}
		if first, err = a.o.Store.DecideSSHCheck(ctx, c); err != nil {
			return nil, fmt.Errorf("storing the decision about an SSH session: %w", err)
		}
	}
	if !first {
		if c, err = a.SSHCheck(ctx, id); err != nil {
			return nil, err
		}
		what := "approved"
		if c.Denied {
			what = "denied"
		}
		return nil, tailnet.Errorf(tailnet.Conflict, "this session was %s already, by %s", what, c.DecidedBy)
	}
	a.log.Info("SSH session decided", "node", c.Dst, "src", c.Src, "ssh_user", c.SSHUser, "approved", approve, "user", c.DecidedBy)
	a.LookAgain()
	a.o.Decided(ctx)
	a.noteSSH(ctx, c)
	return c, nil
}

// LookAgain has the sessions that wait here look at what was decided, at this server or another one.
func (a *Auth) LookAgain() {
	a.wakeMu.Lock()
	defer a.wakeMu.Unlock()
	close(a.decided)
	a.decided = make(chan struct{})
}

// noteSSH writes a decision into the audit log.
func (a *Auth) noteSSH(ctx context.Context, c *tailnet.SSHCheck) {
	e := tailnet.AuditEntry{Action: "ssh_session.approve", TargetKind: "ssh_session", TargetID: c.Src.String() + "-" + c.Dst.String()}
	if c.Denied {
		e.Action = "ssh_session.deny"
	}
	sn := a.st.Snapshot()
	src, dst := c.Src.String(), c.Dst.String()
	if n := sn.Node(c.Src); n != nil {
		src = n.Name
	}
	if n := sn.Node(c.Dst); n != nil {
		dst = n.Name
	}
	e.Target = src + " to " + dst
	said, err := json.Marshal(map[string]any{"source": int64(c.Src), "destination": int64(c.Dst), "sshUser": c.SSHUser, "localUser": c.LocalUser,
		"period": c.Period.String(), "decidedBy": c.DecidedBy})
	if err == nil {
		e.After = said
		err = a.Note(ctx, "SSH session decided", e)
	}
	if err != nil {
		a.log.Error("a decision about an SSH session is not in the audit log", "node", c.Dst, "err", err)
	}
}
