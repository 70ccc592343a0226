package api

import (
	"net/http"
	"strings"

	"github.com/skein-vpn/skein/auth"
)

// v2RestRoutes are what Tailscale's service has and Skein has not. Each answers 501 and says so, to those who could use it if it
// were there.
func (s *server) v2RestRoutes() []route {
	const t = "/tailnet/{tailnet}"
	all := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	var out []route
	for _, no := range []struct{ path, scope, what string }{
		{t + "/posture/integrations", auth.ScopeFeatures, "posture integrations"},
		{"/posture/integrations/{id}", auth.ScopeFeatures, "posture integrations"},
		{t + "/aws-external-id", auth.ScopeLogStream, "log streaming to S3"},
		{t + "/aws-external-id/{id}/validate-aws-trust-policy", auth.ScopeLogStream, "log streaming to S3"},
		{t + "/logging/network", auth.Read(auth.ScopeFlowLogs), "network flow logs"},
		{t + "/logging/{type}/stream", auth.ScopeLogStream, "log streaming over the API; audit.file and webhooks of the configuration do it"},
		{t + "/logging/{type}/stream/status", auth.ScopeLogStream, "log streaming over the API"},
		{t + "/user-invites", auth.ScopeUsers, "invitations; users come by signing in, or with \"skein users create\""},
		{"/user-invites/{id}", auth.ScopeUsers, "invitations"},
		{"/user-invites/{id}/resend", auth.ScopeUsers, "invitations"},
		{"/device/{device}/device-invites", auth.ScopeDevices, "sharing of devices with other tailnets"},
		{"/device-invites/{id}", auth.ScopeDevices, "sharing of devices with other tailnets"},
		{"/device-invites/{id}/resend", auth.ScopeDevices, "sharing of devices with other tailnets"},
		{"/device-invites/-/accept", auth.ScopeDevices, "sharing of devices with other tailnets"},
		{t + "/contacts/{type}/resend-verification-email", auth.ScopeAccount, "verification of contacts: it sends no mail, and takes their addresses as they are"},
	} {
		methods := ops{}
		for _, m := range all {
			scope := no.scope
			if m == http.MethodGet {
				scope = readHalf(scope)
			}
			methods[m] = op{scope, func(r *http.Request) (any, error) {
				discard(r)
				return nil, &unsupported{no.what}
			}}
		}
		out = append(out, route{no.path, methods})
	}
	return out
}

// readHalf is the scope that reads what scope writes.
func readHalf(scope string) string {
	if strings.HasSuffix(scope, ":read") {
		return scope
	}
	return auth.Read(scope)
}
