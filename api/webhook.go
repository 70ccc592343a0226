package api

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/webhook"
)

// Webhooks is what the server needs of package webhook.
type Webhooks interface {
	List(ctx context.Context) ([]*tailnet.Webhook, map[string]tailnet.WebhookState, error)
	Create(ctx context.Context, r webhook.Request) (*tailnet.Webhook, error)
	Update(ctx context.Context, id string, r webhook.Request) (*tailnet.Webhook, error)
	Rotate(ctx context.Context, id string) (*tailnet.Webhook, error)
	Delete(ctx context.Context, id string) error
	Test(ctx context.Context, id string) error
}

// Webhook is an address that is told what happens in the tailnet.
type Webhook struct {
	ID        string     `json:"id"`
	URL       string     `json:"url"`
	Provider  string     `json:"provider"` // "": signed events in JSON; else the chat whose messages they become
	Events    []string   `json:"events"`
	Creator   string     `json:"creator"`
	CreatedAt *time.Time `json:"createdAt"`
	Secret    string     `json:"secret,omitempty"` // in the answers to CreateWebhook and RotateWebhook only

	Sent      int64      `json:"sent"`      // events
	Dropped   int64      `json:"dropped"`   // events that could not be delivered for a day
	Failures  int        `json:"failures"`  // in a row
	LastError string     `json:"lastError"` // empty: the last try went well, or there was none
	LastOK    *time.Time `json:"lastOk"`
	NextTry   *time.Time `json:"nextTry"` // null: nothing waits to be tried again
}

func webhookJSON(h *tailnet.Webhook, s tailnet.WebhookState) *Webhook {
	return &Webhook{
		ID: h.ID, URL: h.URL, Provider: h.Provider, Events: list(h.Events), Creator: h.Creator, CreatedAt: timestamp(h.Created),
		Sent: s.Sent, Dropped: s.Dropped, Failures: s.Failures, LastError: s.LastError, LastOK: timestamp(s.LastOK), NextTry: timestamp(s.NextTry),
	}
}

type (
	// WebhookFilter chooses a part of them.
	WebhookFilter struct {
		Page
	}
	// WebhookList is the answer to ListWebhooks.
	WebhookList struct {
		Webhooks []*Webhook `json:"webhooks"`
		NextPage string     `json:"nextPage,omitempty"`
	}
	// WebhookAnswer is one webhook.
	WebhookAnswer struct {
		Webhook *Webhook `json:"webhook"`
	}
	// WebhookRequest makes a webhook, or changes one: then what is left out stays as it is.
	WebhookRequest struct {
		URL      string   `json:"url,omitempty" example:"https://hooks.example.com/skein"`
		Provider string   `json:"provider,omitempty"`
		Events   []string `json:"events,omitempty" example:"nodeCreated,nodeDeleted"`
	}
)

func (s *server) webhookOperations() []operation {
	change, one := auth.ScopeWebhooks, "/webhook/{webhook}"
	return []operation{
		get("/webhook", auth.Read(auth.ScopeWebhooks), "lists webhooks and how they do", s.listWebhooks),
		post("/webhook", change, "makes one; its secret is in the answer, this once", s.createWebhook),
		patch(one, change, "changes one", s.updateWebhook),
		del(one, change, "deletes one", s.deleteWebhook),
		post(one+"/rotate", change, "gives one a new secret", s.rotateWebhook),
		post(one+"/test", change, "sends one a test event now", s.testWebhook),
	}
}

// webhooks are the webhooks, or an error if this server has none.
func (s *server) webhooks() (Webhooks, error) {
	if s.Webhooks == nil {
		return nil, tailnet.Errorf(tailnet.Unavailable, "this server sends no webhooks")
	}
	return s.Webhooks, nil
}

// oneWebhook calls f with the webhook that r's path names.
func (s *server) oneWebhook(r *http.Request, f func(ws Webhooks, id string) (any, error)) (any, error) {
	ws, id, err := s.pathWebhook(r)
	if err != nil {
		return nil, err
	}
	return f(ws, id)
}

// pathWebhook is the webhook that r's path names.
func (s *server) pathWebhook(r *http.Request) (Webhooks, string, error) {
	ws, err := s.webhooks()
	if err != nil {
		return nil, "", err
	}
	id, err := pathVar(r, "webhook")
	return ws, id, err
}

func (s *server) listWebhooks(r *http.Request, f *WebhookFilter) (*WebhookList, error) {
	ws, err := s.webhooks()
	if err != nil {
		return nil, err
	}
	hooks, states, err := ws.List(r.Context())
	if err != nil {
		return nil, err
	}
	out := &WebhookList{Webhooks: []*Webhook{}}
	for _, h := range hooks {
		out.Webhooks = append(out.Webhooks, webhookJSON(h, states[h.ID]))
	}
	out.Webhooks, out.NextPage, err = cut(out.Webhooks, f.Page, func(h *Webhook) string { return byTime(*h.CreatedAt, h.ID) })
	return out, err
}

// ListWebhooks are all webhooks, oldest first.
func (c *Client) ListWebhooks(ctx context.Context) ([]*Webhook, error) {
	var out WebhookList
	err := c.do(ctx, http.MethodGet, c.path("webhook"), nil, &out)
	return out.Webhooks, err
}

func (s *server) createWebhook(r *http.Request, req *WebhookRequest) (*WebhookAnswer, error) {
	ws, err := s.webhooks()
	if err != nil {
		return nil, err
	}
	h, err := ws.Create(r.Context(), webhook.Request(*req))
	if err != nil {
		return nil, err
	}
	out := webhookJSON(h, tailnet.WebhookState{})
	out.Secret = h.Secret
	return &WebhookAnswer{out}, nil
}

// CreateWebhook makes a webhook. The secret that its events are signed with is in the answer and never again.
func (c *Client) CreateWebhook(ctx context.Context, req WebhookRequest) (*Webhook, error) {
	return c.webhookAnswer(ctx, http.MethodPost, c.path("webhook"), req)
}

func (c *Client) webhookAnswer(ctx context.Context, method string, t target, in any) (*Webhook, error) {
	var out WebhookAnswer
	err := c.do(ctx, method, t, in, &out)
	return out.Webhook, err
}

func (s *server) updateWebhook(r *http.Request, req *WebhookRequest) (*WebhookAnswer, error) {
	ws, id, err := s.pathWebhook(r)
	if err != nil {
		return nil, err
	}
	h, err := ws.Update(r.Context(), id, webhook.Request(*req))
	if err != nil {
		return nil, err
	}
	return &WebhookAnswer{webhookJSON(h, tailnet.WebhookState{})}, nil
}

// UpdateWebhook changes what a webhook is told, and where.
func (c *Client) UpdateWebhook(ctx context.Context, id string, req WebhookRequest) (*Webhook, error) {
	return c.webhookAnswer(ctx, http.MethodPatch, c.path("webhook", id), req)
}

func (s *server) rotateWebhook(r *http.Request, _ *Empty) (*WebhookAnswer, error) {
	ws, id, err := s.pathWebhook(r)
	if err != nil {
		return nil, err
	}
	h, err := ws.Rotate(r.Context(), id)
	if err != nil {
		return nil, err
	}
	out := webhookJSON(h, tailnet.WebhookState{})
	out.Secret = h.Secret
	return &WebhookAnswer{out}, nil
}

// RotateWebhook gives a webhook a new secret, which is in the answer and never again.
func (c *Client) RotateWebhook(ctx context.Context, id string) (*Webhook, error) {
	return c.webhookAnswer(ctx, http.MethodPost, c.path("webhook", id, "rotate"), nil)
}

func (s *server) testWebhook(r *http.Request, _ *Empty) (*Empty, error) {
	ws, id, err := s.pathWebhook(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, ws.Test(r.Context(), id)
}

// TestWebhook sends a webhook an event of the type test, now.
func (c *Client) TestWebhook(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, c.path("webhook", id, "test"), nil, nil)
}

func (s *server) deleteWebhook(r *http.Request, _ *Empty) (*Empty, error) {
	ws, id, err := s.pathWebhook(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, ws.Delete(r.Context(), id)
}

// DeleteWebhook removes a webhook.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, c.path("webhook", id), nil, nil)
}
