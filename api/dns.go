package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// DNS is what clients are told about names.
type DNS struct {
	MagicDNS      bool                          `json:"magicDNS"`
	BaseDomain    string                        `json:"baseDomain"` // of the configuration
	OverrideLocal bool                          `json:"overrideLocal"`
	Nameservers   []tailnet.Resolver            `json:"nameservers"`
	Split         map[string][]tailnet.Resolver `json:"split"`
	Search        []string                      `json:"search"`
	Records       []DNSRecord                   `json:"records"`

	// Set are the parts that were set over the API, by their keys; the others are the configuration's. Records that were set
	// come on top of those of the configuration.
	Set []string `json:"set"`
}

// DNSRecord is a record that clients answer themselves.
type DNSRecord struct {
	Name  string `json:"name"`
	Type  string `json:"type"`  // A or AAAA
	Value string `json:"value"` // the address
	Fixed bool   `json:"fixed"` // it is the configuration's, and cannot be removed here
}

// DNSAnswer is the answer of every DNS operation.
type DNSAnswer struct {
	DNS *DNS `json:"dns"`
}

// DNSParts are the parts of DNS that can be set.
var DNSParts = []string{"magicDNS", "overrideLocal", "nameservers", "split", "search"}

type (
	// ChangeDNSRequest has the parts to set (DNSParts), each as DNS has it; null gives a part back to the configuration.
	ChangeDNSRequest map[string]json.RawMessage
	// AddDNSRecordRequest is a record. Type follows from the address, and may be left out.
	AddDNSRecordRequest struct {
		Name  string `json:"name" example:"printer.example.com"`
		Type  string `json:"type,omitempty"`
		Value string `json:"value" example:"100.64.0.9"`
	}
	// RemoveDNSRecordRequest chooses the records of a name: all that were set, or the one with this Value.
	RemoveDNSRecordRequest struct {
		Name  string `query:"name" required:"true" example:"printer.example.com"`
		Value string `query:"value"`
	}
)

func (s *server) dnsOperations() []operation {
	return []operation{
		get("/dns", auth.Read(auth.ScopeDNS), "the DNS settings", s.getDNS),
		patch("/dns", auth.ScopeDNS, "changes them", s.patchDNS),
		post("/dns/records", auth.ScopeDNS, "adds a record", s.addRecord),
		del("/dns/records", auth.ScopeDNS, "removes records", s.removeRecord).failing(http.StatusNotFound),
	}
}

// dnsJSON is the one place that makes a DNS.
func dnsJSON(sn *state.Snapshot) *DNS {
	d, set := sn.DNS, sn.Tailnet.Settings.DNS
	if set == nil {
		set = &tailnet.DNS{}
	}
	out := &DNS{
		MagicDNS: d.MagicDNS, BaseDomain: d.Base, OverrideLocal: d.OverrideLocal, Nameservers: list(d.Nameservers), Split: d.Split,
		Search: list(d.Search), Records: []DNSRecord{}, Set: []string{},
	}
	if out.Split == nil {
		out.Split = map[string][]tailnet.Resolver{}
	}
	for i, r := range d.Records {
		rec := DNSRecord{Name: r.Name, Type: "A", Value: r.Addr.String(), Fixed: i < len(d.Records)-len(set.Records)}
		if r.Addr.Is6() {
			rec.Type = "AAAA"
		}
		out.Records = append(out.Records, rec)
	}
	for part, is := range map[string]bool{
		"magicDNS": set.MagicDNS != nil, "overrideLocal": set.OverrideLocal != nil, "nameservers": set.Nameservers != nil,
		"split": set.Split != nil, "search": set.Search != nil, "records": len(set.Records) > 0,
	} {
		if is {
			out.Set = append(out.Set, part)
		}
	}
	slices.Sort(out.Set)
	return out
}

func (s *server) getDNS(*http.Request, *Empty) (*DNSAnswer, error) {
	return &DNSAnswer{dnsJSON(s.State.Snapshot())}, nil
}

// GetDNS is what clients are told about names.
func (c *Client) GetDNS(ctx context.Context) (*DNS, error) {
	return c.dnsAnswer(ctx, http.MethodGet, c.path("dns"), nil)
}

func (c *Client) dnsAnswer(ctx context.Context, method string, t target, in any) (*DNS, error) {
	var out DNSAnswer
	err := c.do(ctx, method, t, in, &out)
	return out.DNS, err
}

// patchDNS sets the parts that the body has; null gives a part back to the configuration.
func (s *server) patchDNS(r *http.Request, parts *ChangeDNSRequest) (*DNSAnswer, error) {
	req := *parts
	if len(req) == 0 {
		return nil, tailnet.Errorf(tailnet.Invalid, "there is nothing to set: give some of %s", strings.Join(DNSParts, ", "))
	}
	return s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error {
		for part, value := range req {
			if err := setDNSPart(d, part, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// setDNSPart sets one part of d, or with null unsets it.
func setDNSPart(d *tailnet.DNS, part string, value json.RawMessage) error {
	var v tailnet.DNS
	if !slices.Contains(DNSParts, part) {
		return tailnet.Errorf(tailnet.Invalid, "%q cannot be set: give some of %s", clip(part), strings.Join(DNSParts, ", "))
	}
	if err := decodeJSON([]byte(`{"`+part+`":`+string(value)+`}`), &v); err != nil {
		return err
	}
	switch part {
	case "magicDNS":
		d.MagicDNS = v.MagicDNS
	case "overrideLocal":
		d.OverrideLocal = v.OverrideLocal
	case "nameservers":
		d.Nameservers = v.Nameservers
	case "split":
		d.Split = v.Split
	case "search":
		d.Search = v.Search
	}
	return nil
}

// changeDNS runs f on a copy of what is set and stores it.
func (s *server) changeDNS(r *http.Request, why string, f func(*tailnet.DNS, *state.Tx) error) (*DNSAnswer, error) {
	err := s.update(r, why, func(tx *state.Tx) error {
		set := tx.Tailnet().Settings
		d := &tailnet.DNS{}
		if set.DNS != nil {
			*d = *set.DNS
		}
		if err := f(d, tx); err != nil {
			return err
		}
		set.DNS = d
		return tx.SetSettings(set)
	})
	if err != nil {
		return nil, err
	}
	return s.getDNS(r, nil)
}

// SetDNS sets parts of DNS (DNSParts); nil gives a part back to the configuration.
func (c *Client) SetDNS(ctx context.Context, parts map[string]any) (*DNS, error) {
	return c.dnsAnswer(ctx, http.MethodPatch, c.path("dns"), parts)
}

func record(name, value string) (tailnet.DNSRecord, error) {
	name, err := tailnet.CheckDomain(name)
	if err != nil {
		return tailnet.DNSRecord{}, err
	}
	a, err := netip.ParseAddr(value)
	if err != nil || a.Zone() != "" {
		return tailnet.DNSRecord{}, tailnet.Errorf(tailnet.Invalid, "%q is not an address such as 100.64.0.4 or fd7a:115c:a1e0::4", clip(value))
	}
	return tailnet.DNSRecord{Name: name, Addr: a.Unmap()}, nil
}

func (s *server) addRecord(r *http.Request, req *AddDNSRecordRequest) (*DNSAnswer, error) {
	rec, err := record(req.Name, req.Value)
	if err != nil {
		return nil, err
	}
	if want := map[bool]string{true: "A", false: "AAAA"}[rec.Addr.Is4()]; req.Type != "" && req.Type != want {
		return nil, tailnet.Errorf(tailnet.Invalid, "%s does not fit a record of type %q: its type is %s", rec.Addr, clip(req.Type), want)
	}
	return s.changeDNS(r, "add DNS record "+rec.Name, func(d *tailnet.DNS, _ *state.Tx) error {
		d.Records = append(slices.Clone(d.Records), rec)
		return nil
	})
}

// AddDNSRecord adds a record: the type follows from the address.
func (c *Client) AddDNSRecord(ctx context.Context, name, value string) (*DNS, error) {
	return c.dnsAnswer(ctx, http.MethodPost, c.path("dns", "records"), AddDNSRecordRequest{Name: name, Value: value})
}

func (s *server) removeRecord(r *http.Request, req *RemoveDNSRecordRequest) (*DNSAnswer, error) {
	name, err := tailnet.CheckDomain(req.Name)
	if err != nil {
		return nil, err
	}
	value := req.Value
	return s.changeDNS(r, "remove DNS record "+name, func(d *tailnet.DNS, _ *state.Tx) error {
		was := len(d.Records)
		d.Records = slices.DeleteFunc(slices.Clone(d.Records), func(rec tailnet.DNSRecord) bool {
			return rec.Name == name && (value == "" || rec.Addr.String() == value)
		})
		if len(d.Records) == was {
			return tailnet.Errorf(tailnet.NotFound, "no record %s %s was set over the API; those of the configuration are changed there", name, clip(value))
		}
		return nil
	})
}

// RemoveDNSRecord removes the records of this name that were set over the API: the one with this address, or all if value is
// empty.
func (c *Client) RemoveDNSRecord(ctx context.Context, name, value string) (*DNS, error) {
	return c.dnsAnswer(ctx, http.MethodDelete, c.path("dns", "records").query(values(RemoveDNSRecordRequest{name, value})), nil)
}
