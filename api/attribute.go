package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// SetAttributeRequest gives a node an attribute for the postures of policies. Value is a string, a number or a boolean.
type SetAttributeRequest struct {
	Value   json.RawMessage `json:"value" example:"\"gold\""`
	Comment string          `json:"comment,omitempty"` // for the record of changes
	Expiry  *time.Time      `json:"expiry,omitempty"`  // when the node has it no more; null: never
}

// expiry is when an attribute with this Expiry ends.
func (req *SetAttributeRequest) expiry(now time.Time) (time.Time, error) {
	if req.Expiry == nil || req.Expiry.IsZero() {
		return time.Time{}, nil
	}
	if at := req.Expiry.UTC().Truncate(time.Second); at.After(now) && at.Year() < 10_000 {
		return at, nil
	}
	return time.Time{}, tailnet.Errorf(tailnet.Invalid, "expiry: %s is not in the future", req.Expiry.UTC().Format(time.RFC3339))
}

func (s *server) attributeOperations() []operation {
	one := "/node/{node}/attributes/{name}"
	return []operation{
		post(one, auth.ScopePosture, "gives a node an attribute that postures can ask for: `{\"value\": …}`", s.setAttribute),
		del(one, auth.ScopePosture, "takes an attribute away", s.removeAttribute),
	}
}

func (s *server) setAttribute(r *http.Request, req *SetAttributeRequest) (*NodeAnswer, error) {
	change, why, err := setAttributeTo(r, req)
	if err != nil {
		return nil, err
	}
	return s.changeNode(r, why, change)
}

// attributeChange is the change of a node that r, whose body is a SetAttributeRequest, asks for, and its name.
func attributeChange(r *http.Request) (change func(*state.Tx, *tailnet.Node) (bool, error), why string, err error) {
	var req SetAttributeRequest
	if err := readJSON(r, &req); err != nil {
		return nil, "", err
	}
	return setAttributeTo(r, &req)
}

// setAttributeTo is the change of a node that req, at the path of r, asks for, and its name.
func setAttributeTo(r *http.Request, req *SetAttributeRequest) (change func(*state.Tx, *tailnet.Node) (bool, error), why string, err error) {
	if err := checkText("comment", req.Comment); err != nil {
		return nil, "", err
	}
	name, err := pathVar(r, "name")
	if err != nil {
		return nil, "", err
	}
	a, err := tailnet.NewAttribute(name, req.Value)
	if err != nil {
		return nil, "", err
	}
	why = "set attribute " + name
	if req.Comment != "" {
		why += " (" + req.Comment + ")"
	}
	return func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		var err error
		if a.Expires, err = req.expiry(tx.Now()); err != nil {
			return false, err
		}
		if slices.Contains(n.Attributes, a) {
			return false, nil
		}
		n.Attributes, err = tailnet.WithAttribute(n.Attributes, a)
		return true, err
	}, why, nil
}

// SetAttribute gives a node an attribute; value is a string, a number or a boolean.
func (c *Client) SetAttribute(ctx context.Context, node Ref, name string, value any) (*Node, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "attributes", name), SetAttributeRequest{Value: b})
}

func (s *server) removeAttribute(r *http.Request, _ *Empty) (*NodeAnswer, error) {
	change, why, err := attributeRemoval(r)
	if err != nil {
		return nil, err
	}
	return s.changeNode(r, why, change)
}

func attributeRemoval(r *http.Request) (change func(*state.Tx, *tailnet.Node) (bool, error), why string, err error) {
	name, err := pathVar(r, "name")
	if err != nil {
		return nil, "", err
	}
	return func(_ *state.Tx, n *tailnet.Node) (bool, error) {
		as := tailnet.WithoutAttribute(n.Attributes, name)
		if len(as) == len(n.Attributes) {
			return false, tailnet.Errorf(tailnet.NotFound, "node %s has no attribute %q that was given to it", n.ShortName(), clip(name))
		}
		n.Attributes = as
		return true, nil
	}, "remove attribute " + name, nil
}

// RemoveAttribute takes an attribute from a node.
func (c *Client) RemoveAttribute(ctx context.Context, node Ref, name string) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodDelete, c.path("node", string(node), "attributes", name), nil)
}

// attributesJSON are all attributes of a node: those that were given to it as they were given, the others as text.
func attributesJSON(n *tailnet.Node) map[string]any {
	out := map[string]any{}
	for name, v := range policy.Attributes(n) {
		out[name] = v
	}
	for _, a := range n.Attributes {
		out[a.Name] = a.JSON()
	}
	return out
}
