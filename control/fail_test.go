package control

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// What clients are answered when something fails: the sentence for users if there is one, and nothing of what is not for
// them. A request that a shutdown has ended is no fault of ours; the client shall just come again.
func TestFail(t *testing.T) {
	ts := newServer(t, nil)
	ts.log.allow = []string{"secret detail"}
	ended, end := context.WithCancel(context.Background())
	end()
	for _, tt := range []struct {
		ctx    context.Context
		err    error
		status int
		body   string
	}{
		{context.Background(), errors.New("secret detail"), http.StatusInternalServerError, "internal error\n"},
		{ended, context.Canceled, http.StatusServiceUnavailable, "the server is restarting\n"},
		{context.Background(), tailnet.Errorf(tailnet.Denied, "not you"), http.StatusForbidden, "not you\n"},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/machine/map", nil)
		ts.control.fail(w, r.WithContext(context.WithValue(tt.ctx, peerKey{}, peer{})), "testing", tt.err)
		if w.Code != tt.status || w.Body.String() != tt.body {
			t.Errorf("%v: status %d %q, want %d %q", tt.err, w.Code, w.Body, tt.status, tt.body)
		}
	}
}
