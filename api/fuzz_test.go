package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/skein-vpn/skein/tailnet"
)

// Whatever a body holds, it is understood or refused with an explanation.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", "[]", "{", `{"name":"a"}`, `{"user":1,"key":"x"}`, `{"user":-1}`, `{"user":1e3}`, `{"id":"18446744073709551616"}`, `{"id":{}}`,
		`{"expiry":"2030-01-01T00:00:00Z"}`, `{"expiry":"x"}`, `{"expiry":[]}`, `{"tags":["a",null]}`, `{"routes":["0.0.0.0/0"],"all":true}`, "\x00", `{"name":"\ud800"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range []any{
			new(CreateUserRequest), new(RegisterNodeRequest), new(ExpireNodeRequest), new(SetTagsRequest), new(MoveNodeRequest), new(RoutesRequest),
			new(CreatePreAuthKeyRequest), new(ExpirePreAuthKeyRequest), new(SetPolicyRequest), new(PolicyRequest), new(RollbackPolicyRequest), new(ExplainRequest), new(SetRoleRequest),
		} {
			err := decodeJSON([]byte(s), v)
			if err != nil && (tailnet.CodeOf(err) != tailnet.Invalid || len(err.Error()) > 1000) {
				t.Errorf("%T: %q: %v (%s)", v, s, err, tailnet.CodeOf(err))
			}
			if err == nil {
				if _, err := json.Marshal(v); err != nil {
					t.Errorf("%T: %q cannot be written again: %v", v, s, err)
				}
			}
		}
	})
}

// Whatever is called, the answer is JSON and no fault of ours.
func FuzzServer(f *testing.F) {
	for _, s := range []string{
		"GET /api/v1/node", "POST /api/v1/node/2/rename/a%2fb", "POST /api/v1/routes/enable", "DELETE /api/v1/user/1", "POST /api/v1/node/register?user=1&key=%00",
		"GET /api/v1/user?id=-1", "POST /api/v1/node/2/expire?expiry=1", "DELETE /api/v1/preauthkey?id=0", "GET /api/v1/node/..", "POST /api/v1/user/%00/rename/%ff",
		"PUT /api/v1/policy", "POST /api/v1/policy/diff", "GET /api/v1/policy/explain?src=1&dst=homeds:22", "POST /api/v1/policy/explain?src=user:junyao&dst=10.8.0.1:1&proto=6",
	} {
		f.Add(s, `{"node":2,"routes":["10.8.0.0/16"],"name":"x","user":"1"}`)
	}
	w := seed(f)
	f.Fuzz(func(t *testing.T, call, body string) {
		method, path, _ := strings.Cut(call, " ")
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " \r\n\t") || !utf8.ValidString(path) {
			return
		}
		switch method {
		case "GET", "POST", "DELETE", "PUT":
		default:
			return
		}
		req := httptest.NewRequest("GET", "/", strings.NewReader(body))
		u, err := req.URL.Parse(path)
		if err != nil {
			return
		}
		req.Method, req.URL = method, u
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, req)
		if rec.Code >= 500 || !json.Valid(rec.Body.Bytes()) || !utf8.Valid(rec.Body.Bytes()) {
			t.Errorf("%s %q: %d %s\n%s", call, body, rec.Code, rec.Body, w.log.String())
		}
	})
}
