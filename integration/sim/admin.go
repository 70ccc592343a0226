package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// Admin administers a Skein server over its socket. Unlike commands, it takes no time of its own.
type Admin struct{ hc *http.Client }

// NewAdmin returns an Admin for the server with this socket.
func NewAdmin(socket string) *Admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Admin{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: commandTimeout}}
}

// do sends a request; answer may be nil.
func (a *Admin) do(ctx context.Context, method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://skein/api/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: status %d: %.500s", method, path, res.StatusCode, b)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(b, answer)
}

// Approve approves a route of a node.
func (a *Admin) Approve(ctx context.Context, node int64, _ string, route netip.Prefix) error {
	return a.do(ctx, http.MethodPost, "routes/enable", map[string]any{"node": strconv.FormatInt(node, 10), "routes": []string{route.String()}}, nil)
}

// SetPolicy puts a policy in force; an empty one is none.
func (a *Admin) SetPolicy(ctx context.Context, text string) error {
	body := map[string]any{"policy": text}
	if text == "" {
		body = map[string]any{"none": true}
	}
	return a.do(ctx, http.MethodPut, "policy", body, nil)
}

// SetUp makes the users of a layout and its policy, and a reusable key for each owner of one of the clients. The keys are
// those of the clients, in their order.
func (a *Admin) SetUp(ctx context.Context, l *Layout, clients int) (keys []string, err error) {
	for _, u := range l.Users {
		if err := a.do(ctx, http.MethodPost, "user", map[string]any{"name": u}, nil); err != nil {
			return nil, err
		}
	}
	if err := a.SetPolicy(ctx, l.Policy(0)); err != nil {
		return nil, err
	}
	byOwner := map[Owner]string{}
	for i := range clients {
		o := l.Owner(i)
		if byOwner[o] == "" {
			if byOwner[o], err = a.key(ctx, o, false); err != nil {
				return nil, err
			}
		}
		keys = append(keys, byOwner[o])
	}
	return keys, nil
}

// key makes a reusable key.
func (a *Admin) key(ctx context.Context, o Owner, ephemeral bool) (string, error) {
	body := map[string]any{"reusable": true, "ephemeral": ephemeral, "expiration": time.Time{}}
	if o.Tag != "" {
		body["aclTags"] = []string{o.Tag}
	} else {
		body["user"] = o.User
	}
	var answer struct {
		PreAuthKey struct {
			Key string `json:"key"`
		} `json:"preAuthKey"`
	}
	err := a.do(ctx, http.MethodPost, "preauthkey", body, &answer)
	return answer.PreAuthKey.Key, err
}

// EphemeralKey makes a reusable key for ephemeral nodes that belong to whom the first client belongs to.
func (a *Admin) EphemeralKey(ctx context.Context, l *Layout) (string, error) {
	return a.key(ctx, l.Owner(0), true)
}
