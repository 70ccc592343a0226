package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// How events are delivered.
const (
	lookEvery = 30 * time.Second       // for what nothing woke us for: retries, keys that expire
	pause     = 200 * time.Millisecond // between two looks
	page      = 100                    // entries of the audit log at once, and so about as many events in one request
	timeout   = 15 * time.Second       // for one request
	firstTry  = 2 * time.Second        // after the first failure; doubled with each further one
	longest   = time.Hour              // between two tries
	giveUp    = 24 * time.Hour         // how old an event may get before it is dropped
	soon      = 24 * time.Hour         // before a key expires, nodeKeyExpiringInOneDay is sent
	maxStatus = 64 << 10               // bytes of an answer that are read, and thrown away
)

// errForbidden is an address that is never asked.
var errForbidden = errors.New("this address is refused: it is a loopback, link-local or multicast address (webhooks.allow_loopback permits loopback)")

// newClient is a client that follows no redirects and stays away from addresses that outsiders must not reach through us. The
// address is looked at when the name has been resolved, so that no name can change in between.
func newClient(allowLoopback bool) *http.Client {
	d := &net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return errForbidden
		}
		a := ap.Addr().Unmap()
		if a.IsLoopback() && allowLoopback {
			return nil
		}
		if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.IsInterfaceLocalMulticast() {
			return errForbidden
		}
		return nil
	}}
	return &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true, TLSHandshakeTimeout: timeout, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Run delivers until ctx ends, as long as leads says that this server is the one that does. It waits for what is under way.
func (m *Manager) Run(ctx context.Context, leads func() bool) {
	defer m.wg.Wait()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		sn := m.o.State.Snapshot()
		if leads() {
			m.noteKeys(ctx, sn)
			m.start(ctx)
		}
		select { // a server with much to do is not asked about its webhooks with every commit
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		rev := sn.Rev
		for m.o.State.Snapshot().Rev == rev {
			select {
			case <-ctx.Done():
				return
			case <-m.o.State.Snapshot().Superseded():
				continue
			case <-m.wake:
			case <-tick.C:
			}
			break
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// start begins to tell those webhooks something whose turn it is and that are not busy.
func (m *Manager) start(ctx context.Context) {
	hooks, states, err := m.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.o.Log.Warn("webhooks cannot be read at the moment", "err", err)
		}
		return
	}
	now := m.o.Now()
	for _, h := range hooks {
		s := states[h.ID]
		m.mu.Lock()
		if m.busy[h.ID] || s.NextTry.After(now) {
			m.mu.Unlock()
			continue
		}
		m.busy[h.ID] = true
		m.mu.Unlock()
		m.wg.Go(func() {
			defer func() {
				m.mu.Lock()
				delete(m.busy, h.ID)
				m.mu.Unlock()
			}()
			m.tell(ctx, h, s)
		})
	}
}

// tell tells h what has happened since s, page by page, until it knows everything or a try fails.
func (m *Manager) tell(ctx context.Context, h *tailnet.Webhook, s tailnet.WebhookState) {
	for ctx.Err() == nil {
		es, err := m.o.Store.AuditLog(ctx, m.o.Tailnet, tailnet.AuditQuery{After: &s.Pos, Limit: page})
		if err != nil || len(es) == 0 {
			if err != nil && ctx.Err() == nil {
				m.o.Log.Warn("the audit log cannot be read at the moment", "err", err)
			}
			return
		}
		var events []Event
		for _, e := range es {
			for _, ev := range eventsOf(e, m.o.State.Snapshot().Tailnet.Name, m.o.ServerURL) {
				if wants(h.Events, ev.Type) {
					events = append(events, ev)
				}
			}
		}
		failed := false
		if len(events) > 0 {
			err := m.post(ctx, h, events)
			if ctx.Err() != nil {
				return // it may have arrived: it comes again after the start
			}
			failed = m.account(h, &s, events, err)
		}
		if !failed {
			s.Pos = es[len(es)-1].Pos()
		}
		if len(events) > 0 || len(es) == page {
			if err := m.o.Store.SaveWebhookState(ctx, m.o.Tailnet, h.ID, s); err != nil {
				m.o.Log.Warn("it could not be saved how far a webhook is; it may be told something twice", "err", err)
			}
		}
		if failed || len(es) < page {
			return
		}
	}
}

// account notes in s what became of a try, and reports whether it has to be made again.
func (m *Manager) account(h *tailnet.Webhook, s *tailnet.WebhookState, events []Event, err error) (again bool) {
	now := m.o.Now()
	if err == nil {
		s.Failures, s.NextTry, s.LastError, s.LastOK, s.Sent = 0, time.Time{}, "", now, s.Sent+int64(len(events))
		return false
	}
	s.Failures++
	s.NextTry = now.Add(min(longest, firstTry<<min(s.Failures-1, 20)))
	s.LastError = tailnet.CleanText(err.Error())
	if now.Sub(events[0].Timestamp) < giveUp {
		m.o.Log.Warn("a webhook could not be told; it is tried again", "webhook", h.ID, "failures", s.Failures, "err", err)
		return true
	}
	s.Dropped += int64(len(events))
	m.o.Log.Error("a webhook could not be told for a day; events are dropped", "webhook", h.ID, "events", len(events), "err", err)
	return false
}

// Sign is the value of the header Tailscale-Webhook-Signature for a body that is sent at now.
func Sign(secret string, now time.Time, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%d.", now.Unix())
	mac.Write(body)
	return fmt.Sprintf("t=%d,v1=%s", now.Unix(), hex.EncodeToString(mac.Sum(nil)))
}

// post sends events once. The error says no more than a person needs who looks after the webhook.
func (m *Manager) post(ctx context.Context, h *tailnet.Webhook, events []Event) error {
	body, err := message(h.Provider, events)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "skein")
	if h.Provider == "" {
		req.Header.Set("Tailscale-Webhook-Signature", Sign(h.Secret, m.o.Now(), body))
	}
	res, err := m.client.Do(req)
	if err != nil {
		if errors.Is(err, errForbidden) {
			return errForbidden
		}
		return errors.New("the receiver does not answer")
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxStatus))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the receiver answered with status %d", res.StatusCode)
	}
	return nil
}

// message is the body for a provider: events as they are, or their messages as text for a chat.
func message(provider string, events []Event) ([]byte, error) {
	if provider == "" {
		return json.Marshal(events)
	}
	var lines []string
	for _, e := range events {
		line := e.Message
		if a := e.Data["actor"]; a != "" {
			line += " (" + a + ")"
		}
		lines = append(lines, line)
	}
	key, text := "text", strings.Join(lines, "\n")
	if provider == "discord" {
		key = "content"
		if r := []rune(text); len(r) > 1900 { // it takes 2,000 characters
			text = string(r[:1900]) + "…"
		}
	}
	return json.Marshal(map[string]string{key: text})
}

// Test sends an event of the type test to a webhook now. The error is Unavailable if it did not arrive.
func (m *Manager) Test(ctx context.Context, id string) error {
	h, err := m.Get(ctx, id)
	if err != nil {
		return err
	}
	err = m.post(ctx, h, []Event{{
		Timestamp: m.o.Now().UTC(), Version: 1, Type: "test", Tailnet: m.o.State.Snapshot().Tailnet.Name, Message: "This is a test event",
		Data: map[string]string{"actor": state.ActorOf(ctx).Name},
	}})
	if err != nil {
		return tailnet.Errorf(tailnet.Unavailable, "the test event did not arrive: %w", err)
	}
	return nil
}

// keysMark is the place of the watch over keys that expire, among those of webhooks.
const keysMark = "#keys"

// noteKeys writes into the audit log which keys have expired, and which will in a day, since it was asked last.
func (m *Manager) noteKeys(ctx context.Context, sn *state.Snapshot) {
	states, err := m.o.Store.WebhookStates(ctx, m.o.Tailnet)
	if err != nil {
		return // said elsewhere
	}
	now := m.o.Now()
	mark, known := states[keysMark]
	from := mark.NextTry
	if known && now.Sub(from) < lookEvery {
		return
	}
	var es []tailnet.AuditEntry
	for _, n := range sn.Nodes() {
		if !known || n.Expiry.IsZero() {
			continue
		}
		in := func(t time.Time) bool { return t.After(from) && !t.After(now) }
		for action, at := range map[string]time.Time{"node.key_expired": n.Expiry, "node.key_expiring": n.Expiry.Add(-soon)} {
			if in(at) {
				es = append(es, tailnet.AuditEntry{Action: action, TargetKind: "node", TargetID: n.ID.String(), Target: n.Name})
			}
		}
	}
	if len(es) > 0 {
		err := m.o.State.Update(ctx, "keys of nodes end", func(tx *state.Tx) error {
			for _, e := range es {
				tx.Audit(e)
			}
			return nil
		})
		if err != nil {
			return // next time
		}
	}
	mark.NextTry = now
	if err := m.o.Store.SaveWebhookState(ctx, m.o.Tailnet, keysMark, mark); err != nil && ctx.Err() == nil {
		m.o.Log.Warn("it could not be saved up to when keys were watched", "err", err)
	}
}
