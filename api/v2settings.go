package api

import (
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// v2Settings are the settings of the tailnet (TailnetSettings of the Go client). Those that Skein does not have are always off.
type v2Settings struct {
	ACLsExternallyManagedOn bool   `json:"aclsExternallyManagedOn"`
	ACLsExternalLink        string `json:"aclsExternalLink"`

	DevicesApprovalOn      bool `json:"devicesApprovalOn"`
	DevicesAutoUpdatesOn   bool `json:"devicesAutoUpdatesOn"`
	DevicesKeyDurationDays int  `json:"devicesKeyDurationDays"` // 0: keys do not end, or the configuration says when

	UsersApprovalOn                        bool   `json:"usersApprovalOn"`
	UsersRoleAllowedToJoinExternalTailnets string `json:"usersRoleAllowedToJoinExternalTailnets"`

	NetworkFlowLoggingOn        bool `json:"networkFlowLoggingOn"`
	RegionalRoutingOn           bool `json:"regionalRoutingOn"`
	PostureIdentityCollectionOn bool `json:"postureIdentityCollectionOn"`
	HTTPSEnabled                bool `json:"httpsEnabled"`
}

func (s *server) v2SettingsRoutes() []route {
	return []route{{"/tailnet/{tailnet}/settings", ops{
		http.MethodGet: {auth.Read(auth.ScopeFeatures), s.v2GetSettings}, http.MethodPatch: {auth.ScopeFeatures, s.v2PatchSettings},
	}}}
}

func (s *server) v2GetSettings(*http.Request) (any, error) {
	set := s.State.Snapshot().Tailnet.Settings
	out := v2Settings{
		DevicesApprovalOn: set.DeviceApproval, UsersApprovalOn: set.UserApproval, UsersRoleAllowedToJoinExternalTailnets: "none",
		ACLsExternallyManagedOn: s.PolicyFile != "",
	}
	if set.KeyDuration > 0 {
		out.DevicesKeyDurationDays = max(1, int(set.KeyDuration/(24*time.Hour)))
	}
	return out, nil
}

func (s *server) v2PatchSettings(r *http.Request) (any, error) {
	var req struct {
		ACLsExternallyManagedOn *bool   `json:"aclsExternallyManagedOn"`
		ACLsExternalLink        *string `json:"aclsExternalLink"`

		DevicesApprovalOn      *bool `json:"devicesApprovalOn"`
		DevicesAutoUpdatesOn   *bool `json:"devicesAutoUpdatesOn"`
		DevicesKeyDurationDays *int  `json:"devicesKeyDurationDays"`

		UsersApprovalOn                        *bool   `json:"usersApprovalOn"`
		UsersRoleAllowedToJoinExternalTailnets *string `json:"usersRoleAllowedToJoinExternalTailnets"`

		NetworkFlowLoggingOn        *bool `json:"networkFlowLoggingOn"`
		RegionalRoutingOn           *bool `json:"regionalRoutingOn"`
		PostureIdentityCollectionOn *bool `json:"postureIdentityCollectionOn"`
		HTTPSEnabled                *bool `json:"httpsEnabled"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	on := func(b *bool) bool { return b != nil && *b }
	switch {
	case req.ACLsExternallyManagedOn != nil && *req.ACLsExternallyManagedOn != (s.PolicyFile != ""):
		return nil, &unsupported{"a switch for where the policy is managed: it is policy.path in the configuration of the server"}
	case req.ACLsExternalLink != nil && *req.ACLsExternalLink != "":
		return nil, &unsupported{"a link to where the policy is managed"}
	case on(req.DevicesAutoUpdatesOn):
		return nil, &unsupported{"automatic updates of clients; each machine's own setting decides"}
	case req.UsersRoleAllowedToJoinExternalTailnets != nil && *req.UsersRoleAllowedToJoinExternalTailnets != "none":
		return nil, &unsupported{"other tailnets that users could join"}
	case on(req.NetworkFlowLoggingOn):
		return nil, &unsupported{"network flow logs"}
	case on(req.RegionalRoutingOn):
		return nil, &unsupported{"regional routing"}
	case on(req.PostureIdentityCollectionOn):
		return nil, &unsupported{"the collection of serial numbers"}
	case on(req.HTTPSEnabled):
		return nil, &unsupported{"HTTPS certificates for nodes"}
	case req.DevicesKeyDurationDays != nil && (*req.DevicesKeyDurationDays < 0 || *req.DevicesKeyDurationDays > 3650):
		return nil, tailnet.Errorf(tailnet.Invalid, "devicesKeyDurationDays must be 1 to 3650, or 0 for what the configuration says")
	}
	err := s.update(r, "change settings", func(tx *state.Tx) error {
		set := tx.Tailnet().Settings
		if req.DevicesApprovalOn != nil {
			set.DeviceApproval = *req.DevicesApprovalOn
		}
		if req.UsersApprovalOn != nil {
			set.UserApproval = *req.UsersApprovalOn
		}
		if req.DevicesKeyDurationDays != nil {
			set.KeyDuration = time.Duration(*req.DevicesKeyDurationDays) * 24 * time.Hour
		}
		return tx.SetSettings(set)
	})
	if err != nil {
		return nil, err
	}
	return s.v2GetSettings(r)
}

// v2Contacts are the contacts of the tailnet (Contacts of the Go client).
type v2Contacts struct {
	Account  v2Contact `json:"account"`
	Support  v2Contact `json:"support"`
	Security v2Contact `json:"security"`
}

// v2Contact is one of them. Nobody verifies addresses here.
type v2Contact struct {
	Email             string `json:"email"`
	NeedsVerification bool   `json:"needsVerification"`
}

func (s *server) v2ContactRoutes() []route {
	return []route{
		{"/tailnet/{tailnet}/contacts", ops{http.MethodGet: {auth.Read(auth.ScopeAccount), s.v2GetContacts}}},
		{"/tailnet/{tailnet}/contacts/{type}", ops{http.MethodPatch: {auth.ScopeAccount, s.v2PatchContact}}},
	}
}

func (s *server) v2GetContacts(*http.Request) (any, error) {
	c := s.State.Snapshot().Tailnet.Settings.Contacts
	return v2Contacts{v2Contact{Email: c.Account}, v2Contact{Email: c.Support}, v2Contact{Email: c.Security}}, nil
}

func (s *server) v2PatchContact(r *http.Request) (any, error) {
	kind, err := pathVar(r, "type")
	if err != nil {
		return nil, err
	}
	var req struct {
		Email *string `json:"email"`
	}
	var change ChangeContacts
	field, ok := map[string]**string{"account": &change.Account, "support": &change.Support, "security": &change.Security}[kind]
	if !ok {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no contact %q: they are account, support and security", clip(kind))
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	*field = req.Email
	return Empty{}, s.update(r, "change the "+kind+" contact", func(tx *state.Tx) error {
		set := tx.Tailnet().Settings
		set.Contacts = change.apply(set.Contacts)
		return tx.SetSettings(set)
	})
}
