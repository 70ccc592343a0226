package api

import (
	"net/http"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/webhook"
)

// v2Webhook is an address that is told what happens (Webhook of the Go client).
type v2Webhook struct {
	EndpointID       string   `json:"endpointId"`
	EndpointURL      string   `json:"endpointUrl"`
	ProviderType     string   `json:"providerType"`
	CreatorLoginName string   `json:"creatorLoginName"`
	Created          string   `json:"created"`
	LastModified     string   `json:"lastModified"`
	Subscriptions    []string `json:"subscriptions"`
	Secret           string   `json:"secret,omitempty"` // when it is made and when it gets a new one
}

type v2WebhookRequest struct {
	EndpointURL   string   `json:"endpointUrl"`
	ProviderType  string   `json:"providerType"`
	Subscriptions []string `json:"subscriptions"`
}

func (s *server) v2WebhookRoutes() []route {
	const one = "/webhooks/{webhook}"
	read, write := auth.Read(auth.ScopeWebhooks), auth.ScopeWebhooks
	return []route{
		{"/tailnet/{tailnet}/webhooks", ops{http.MethodGet: {read, s.v2Webhooks}, http.MethodPost: {write, s.v2CreateWebhook}}},
		{one, ops{http.MethodGet: {read, s.v2GetWebhook}, http.MethodPatch: {write, s.v2UpdateWebhook}, http.MethodDelete: {write, s.v2DeleteWebhook}}},
		{one + "/test", ops{http.MethodPost: {write, s.v2TestWebhook}}},
		{one + "/rotate", ops{http.MethodPost: {write, s.v2RotateWebhook}}},
	}
}

func v2WebhookJSON(h *tailnet.Webhook, secret string) *v2Webhook {
	return &v2Webhook{
		EndpointID: h.ID, EndpointURL: h.URL, ProviderType: h.Provider, CreatorLoginName: h.Creator, Created: v2Time(h.Created),
		LastModified: v2Time(h.Modified), Subscriptions: list(h.Events), Secret: secret,
	}
}

func (s *server) v2Webhooks(r *http.Request) (any, error) {
	ws, err := s.webhooks()
	if err != nil {
		return nil, err
	}
	hooks, _, err := ws.List(r.Context())
	if err != nil {
		return nil, err
	}
	out := struct {
		Webhooks []*v2Webhook `json:"webhooks"`
	}{[]*v2Webhook{}}
	for _, h := range hooks {
		out.Webhooks = append(out.Webhooks, v2WebhookJSON(h, ""))
	}
	return out, nil
}

func (s *server) v2GetWebhook(r *http.Request) (any, error) {
	return s.oneWebhook(r, func(ws Webhooks, id string) (any, error) {
		hooks, _, err := ws.List(r.Context())
		if err != nil {
			return nil, err
		}
		for _, h := range hooks {
			if h.ID == id {
				return v2WebhookJSON(h, ""), nil
			}
		}
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no webhook %q", clip(id))
	})
}

func (s *server) v2CreateWebhook(r *http.Request) (any, error) {
	ws, err := s.webhooks()
	if err != nil {
		return nil, err
	}
	var req v2WebhookRequest
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	h, err := ws.Create(r.Context(), webhook.Request{URL: req.EndpointURL, Provider: req.ProviderType, Events: req.Subscriptions})
	if err != nil {
		return nil, err
	}
	return v2WebhookJSON(h, h.Secret), nil
}

func (s *server) v2UpdateWebhook(r *http.Request) (any, error) {
	return s.oneWebhook(r, func(ws Webhooks, id string) (any, error) {
		var req v2WebhookRequest
		if err := readV2(r, &req); err != nil {
			return nil, err
		}
		if req.EndpointURL != "" || req.ProviderType != "" {
			return nil, tailnet.Errorf(tailnet.Invalid, "only the subscriptions of a webhook can be changed")
		}
		h, err := ws.Update(r.Context(), id, webhook.Request{Events: req.Subscriptions})
		if err != nil {
			return nil, err
		}
		return v2WebhookJSON(h, ""), nil
	})
}

func (s *server) v2RotateWebhook(r *http.Request) (any, error) {
	discard(r)
	return s.oneWebhook(r, func(ws Webhooks, id string) (any, error) {
		h, err := ws.Rotate(r.Context(), id)
		if err != nil {
			return nil, err
		}
		return v2WebhookJSON(h, h.Secret), nil
	})
}

func (s *server) v2TestWebhook(r *http.Request) (any, error) {
	discard(r)
	return s.oneWebhook(r, func(ws Webhooks, id string) (any, error) { return Empty{}, ws.Test(r.Context(), id) })
}

func (s *server) v2DeleteWebhook(r *http.Request) (any, error) {
	return s.oneWebhook(r, func(ws Webhooks, id string) (any, error) { return Empty{}, ws.Delete(r.Context(), id) })
}
