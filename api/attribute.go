package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// SetAttributeRequest gives a node an attribute for the postures of policies. Value is a string, a number or a boolean.
type SetAttributeRequest struct {
	Value   json.RawMessage `json:"value" example:"\"gold\""`
	Comment string          `json:"comment,omitempty"` // for the record of changes
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
	var req struct {
		SetAttributeRequest
		Expiry string `json:"expiry"`
	}
	if err := readJSON(r, &req); err != nil {
		return nil, "", err
	}
	if req.Expiry != "" && req.Expiry != "0001-01-01T00:00:00Z" {
		return nil, "", &unsupported{"attributes that end by themselves (expiry)"}
	}
	return setAttributeTo(r, &req.SetAttributeRequest)
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
	return func(_ *state.Tx, n *tailnet.Node) (bool, error) {
		if slices.Contains(n.Attributes, a) {
			return false, nil
		}
		as, err := tailnet.WithAttribute(n.Attributes, a)
		n.Attributes = as
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
