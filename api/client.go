package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// requestTimeout bounds one request; the slowest ones wait for a commit.
const requestTimeout = time.Minute

// maxAnswer is how many bytes of an answer are read at the most: room for the nodes of a very large tailnet.
const maxAnswer = 256 << 20

// Client calls the operations of a server. Its methods return a *tailnet.Error with the server's code and sentence, or with
// Unavailable if there is no server. It is safe for concurrent use.
type Client struct {
	http *http.Client
	base string // scheme and host
	name string // where the server is, for error messages
	key  string // API key; empty over the unix socket
}

// NewUnixClient talks to the server that listens on the unix socket at path.
func NewUnixClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{
		http: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}},
		base: "http://skein",
		name: path,
	}
}

// NewClient talks to the server at serverURL, which is its URL as clients know it, with an API key. The certificate of an https URL
// must be one that this machine trusts.
func NewClient(serverURL, key string) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(serverURL), "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "%q is not the URL of a server, such as https://skein.example.com", clip(serverURL))
	}
	key = strings.TrimSpace(key)
	switch {
	case key == "":
		return nil, tailnet.Errorf(tailnet.Invalid, "an API key is needed for %s", u)
	case strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }):
		return nil, tailnet.Errorf(tailnet.Invalid, "the API key has spaces or foreign letters in it; check that it was copied right")
	}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a key goes where it was meant to go
	return &Client{http: &http.Client{Timeout: requestTimeout, CheckRedirect: refuse}, base: u.String(), name: u.String(), key: key}, nil
}

// target is the path of an operation and its query.
type target string

// path joins path elements, escaping each.
func (c *Client) path(elems ...string) target {
	var b strings.Builder
	b.WriteString(Prefix)
	for _, e := range elems {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(e))
	}
	return target(b.String())
}

func (t target) query(q url.Values) target {
	if len(q) == 0 {
		return t
	}
	return t + target("?"+q.Encode())
}

// do sends in as JSON, unless it is nil, and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method string, t target, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+string(t), body)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return &tailnet.Error{Code: tailnet.Unavailable, Message: fmt.Sprintf("the answer of the server at %s broke off: %v", c.name, err), Cause: err}
	}
	if len(b) > maxAnswer {
		return tailnet.Errorf(tailnet.Internal, "the answer of the server at %s is larger than %d MiB", c.name, maxAnswer>>20)
	}
	if res.StatusCode >= http.StatusBadRequest {
		return errorOf(res.StatusCode, b)
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		return tailnet.Errorf(tailnet.Unavailable, "the server at %s sends its callers elsewhere, to %s: use that URL", c.name, clip(res.Header.Get("Location")))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &tailnet.Error{Code: tailnet.Internal, Message: fmt.Sprintf("the server at %s answered with something else than skein does: %v", c.name, err), Cause: err}
	}
	return nil
}

// unreachable is the error of a request that was not answered.
func (c *Client) unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the invented URL
	}
	return &tailnet.Error{Code: tailnet.Unavailable, Message: fmt.Sprintf("the server at %s does not answer: %v", c.name, err), Cause: err}
}

// errorOf is the Problem in a failed answer as the error it was on the server.
func errorOf(status int, body []byte) error {
	var p Problem
	if json.Unmarshal(body, &p) != nil || p.Message == "" {
		return tailnet.Errorf(tailnet.Internal, "the server answered with status %d and no explanation", status)
	}
	if len(p.Faults) > 0 {
		return &PolicyError{Message: p.Message, Faults: p.Faults}
	}
	if _, ok := kinds[p.Reason]; !ok {
		p.Reason = tailnet.Internal
	}
	return &tailnet.Error{Code: p.Reason, Message: p.Message}
}
