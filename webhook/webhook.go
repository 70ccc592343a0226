// Package webhook tells other programs what happens in the tailnet.
//
//	a change ──► audit log ──► events of it ──► those that a webhook wants ──► POST, signed as Tailscale signs them
//	             (durable)                                                     │
//	             ◄── the webhook's place in the log moves on ◄── 2xx ──────────┘   anything else: again later
//
// The audit log is the queue, and each webhook remembers how far it has got: a restart loses nothing, and what a receiver misses
// while it is away is sent when it is back. After giveUp, events that could not be delivered are dropped and counted. The place is
// saved without waiting for the disk, so that after a crash events may come twice; they are never out of order.
//
// # Whom the server asks
//
// Who may make webhooks (scope webhooks) chooses addresses that this server sends requests to. It never follows a redirect, tells
// nothing of the answer but its status, and refuses link-local, multicast and, unless Options.AllowLoopback, loopback addresses,
// whatever name they have. Addresses of private networks are possible: receivers at home are there.
package webhook

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Store keeps webhooks; db.DB is the one in use.
type Store interface {
	// Webhooks are all webhooks, oldest first.
	Webhooks(ctx context.Context, id tailnet.ID) ([]*tailnet.Webhook, error)
	// PutWebhook stores a webhook in place of one with the same ID.
	PutWebhook(ctx context.Context, w *tailnet.Webhook) error
	// DeleteWebhook removes a webhook; it is not an error if there is none.
	DeleteWebhook(ctx context.Context, id tailnet.ID, webhook string) error
	// SaveWebhookState notes how far a webhook has got; it need not be durable.
	SaveWebhookState(ctx context.Context, id tailnet.ID, webhook string, s tailnet.WebhookState) error
	// WebhookStates says how far webhooks have got.
	WebhookStates(ctx context.Context, id tailnet.ID) (map[string]tailnet.WebhookState, error)
	// AuditLog are the entries that q chooses.
	AuditLog(ctx context.Context, id tailnet.ID, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error)
}

// Options is what a Manager is made of. State and Store are required.
type Options struct {
	State         *state.State
	Store         Store
	Tailnet       tailnet.ID // 0: tailnet.DefaultID
	ServerURL     string     // as people reach the server
	AllowLoopback bool       // receivers on this very machine are possible

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

// Manager keeps webhooks and delivers their events. It is safe for concurrent use.
type Manager struct {
	o      Options
	client *http.Client
	wake   chan struct{} // one slot: something about a webhook has changed

	mu   sync.Mutex
	busy map[string]bool // guarded by mu: webhooks that are being told something
	wg   sync.WaitGroup
}

// Limits on webhooks.
const (
	maxWebhooks = 50
	maxURL      = 2048
)

// Providers are the shapes of messages.
var Providers = []string{"", "slack", "mattermost", "googlechat", "discord"}

// New returns a Manager, which delivers while Run runs.
func New(o Options) *Manager {
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Manager{o: o, client: newClient(o.AllowLoopback), wake: make(chan struct{}, 1), busy: map[string]bool{}}
}

// Request says what a webhook is to be.
type Request struct {
	URL      string
	Provider string
	Events   []string
}

func (m *Manager) check(r Request) (Request, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(r.URL) > maxURL {
		return r, tailnet.Errorf(tailnet.Invalid, "%q is not a URL such as https://hooks.example.com/skein", tailnet.CleanText(r.URL))
	}
	if !slices.Contains(Providers, r.Provider) {
		return r, tailnet.Errorf(tailnet.Invalid, "%q is not a provider: use one of%s, or none", tailnet.CleanText(r.Provider), strings.Join(Providers, " "))
	}
	if len(r.Events) == 0 {
		return r, tailnet.Errorf(tailnet.Invalid, "events are missing: name some of %s", strings.Join(EventTypes(), ", "))
	}
	r.Events = slices.Clone(r.Events)
	for _, e := range r.Events {
		if !slices.Contains(EventTypes(), e) {
			return r, tailnet.Errorf(tailnet.Invalid, "%q is not an event: use %s", tailnet.CleanText(e), strings.Join(EventTypes(), ", "))
		}
	}
	slices.Sort(r.Events)
	r.Events = slices.Compact(r.Events)
	return r, nil
}

// List are all webhooks, oldest first, with how far they have got.
func (m *Manager) List(ctx context.Context) ([]*tailnet.Webhook, map[string]tailnet.WebhookState, error) {
	hooks, err := m.o.Store.Webhooks(ctx, m.o.Tailnet)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the webhooks: %w", err)
	}
	states, err := m.o.Store.WebhookStates(ctx, m.o.Tailnet)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what webhooks were told: %w", err)
	}
	return hooks, states, nil
}

// Get is the webhook with this id.
func (m *Manager) Get(ctx context.Context, id string) (*tailnet.Webhook, error) {
	hooks, _, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range hooks {
		if h.ID == id {
			return h, nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no webhook %q", tailnet.CleanText(id))
}

// Create makes a webhook, which is told what happens from now on; its Secret is what events are signed with.
func (m *Manager) Create(ctx context.Context, r Request) (*tailnet.Webhook, error) {
	r, err := m.check(r)
	if err != nil {
		return nil, err
	}
	hooks, _, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	if len(hooks) >= maxWebhooks {
		return nil, tailnet.Errorf(tailnet.Exhausted, "there are %d webhooks already, which is as many as are possible", len(hooks))
	}
	id := "w" + rand.Text()[:12]
	h := &tailnet.Webhook{
		ID: id, Tailnet: m.o.Tailnet, URL: r.URL, Provider: r.Provider, Events: r.Events, Secret: newSecret(id),
		Creator: state.ActorOf(ctx).Name, Created: m.o.Now(), Modified: m.o.Now(),
	}
	// Its place first: without one it would be told the whole log.
	pos := tailnet.AuditPos{Rev: m.o.State.Snapshot().Rev, Seq: 1 << 30}
	if err := m.o.Store.SaveWebhookState(ctx, m.o.Tailnet, id, tailnet.WebhookState{Pos: pos}); err != nil {
		return nil, fmt.Errorf("storing the webhook: %w", err)
	}
	return h, m.put(ctx, "webhook.create", h)
}

func newSecret(id string) string { return "tskey-webhook-" + id + "-" + rand.Text() }

// Update replaces what a webhook is told; an empty URL and Provider stay as they are, and so do Events that are nil.
func (m *Manager) Update(ctx context.Context, id string, r Request) (*tailnet.Webhook, error) {
	return m.change(ctx, id, "webhook.update", func(h *tailnet.Webhook) error {
		if r.URL == "" {
			r.URL, r.Provider = h.URL, h.Provider
		}
		if r.Events == nil {
			r.Events = h.Events
		}
		r, err := m.check(r)
		h.URL, h.Provider, h.Events = r.URL, r.Provider, r.Events
		return err
	})
}

// Rotate gives a webhook a new Secret. The old one is of no use any more.
func (m *Manager) Rotate(ctx context.Context, id string) (*tailnet.Webhook, error) {
	return m.change(ctx, id, "webhook.rotate", func(h *tailnet.Webhook) error {
		h.Secret = newSecret(h.ID)
		return nil
	})
}

func (m *Manager) change(ctx context.Context, id, action string, f func(h *tailnet.Webhook) error) (*tailnet.Webhook, error) {
	h, err := m.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := f(h); err != nil {
		return nil, err
	}
	h.Modified = m.o.Now()
	return h, m.put(ctx, action, h)
}

func (m *Manager) put(ctx context.Context, action string, h *tailnet.Webhook) error {
	if err := m.o.Store.PutWebhook(ctx, h); err != nil {
		return fmt.Errorf("storing the webhook: %w", err)
	}
	return m.note(ctx, action, h)
}

// Delete removes a webhook; what it was not told yet it will not be told.
func (m *Manager) Delete(ctx context.Context, id string) error {
	h, err := m.Get(ctx, id)
	if err != nil {
		return err
	}
	if err := m.o.Store.DeleteWebhook(ctx, m.o.Tailnet, id); err != nil {
		return fmt.Errorf("removing the webhook: %w", err)
	}
	return m.note(ctx, "webhook.delete", h)
}

// note writes a change of a webhook into the audit log. The URL may be a secret of its receiver, so only its host is told.
func (m *Manager) note(ctx context.Context, action string, h *tailnet.Webhook) error {
	host := ""
	if u, err := url.Parse(h.URL); err == nil {
		host = u.Host
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return m.o.State.Update(ctx, "webhook changed", func(tx *state.Tx) error {
		tx.Audit(tailnet.AuditEntry{
			Action: action, TargetKind: "webhook", TargetID: h.ID, Target: host,
			After: fmt.Appendf(nil, `{"provider":%q,"events":%s}`, h.Provider, jsonList(h.Events)),
		})
		return nil
	})
}
