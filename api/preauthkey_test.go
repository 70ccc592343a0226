package api

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestPreAuthKeys(t *testing.T) {
	w := seed(t)
	if _, body := w.call("GET", "/api/v1/preauthkey", ""); body != "{\"preAuthKeys\":[]}\n" {
		t.Errorf("an empty list is %s", body)
	}
	k, err := w.client.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{User: "junyao"})
	if err != nil {
		t.Fatal(err)
	}
	if k.ID != 1 || k.Namespace() != "junyao" || k.Reusable || k.Ephemeral || k.Used || !k.Usable || !k.Expiration.Equal(noon.Add(DefaultKeyLife)) {
		t.Errorf("created %+v", k)
	}
	row := w.st.Snapshot().PreAuthKey(1)
	if row.Hash != sha256.Sum256([]byte(k.Key)) || strings.Contains(row.Prefix, k.Key[len(k.Key)-20:]) {
		t.Errorf("the answer's key %s is not the one kept: %+v", k.Key, row)
	}

	never, soon := time.Time{}, noon.Add(time.Hour)
	tagged, err := w.client.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{User: "1", ACLTags: []string{"tag:ci"}, Reusable: true, Ephemeral: true, Expiration: &never})
	if err != nil || tagged.User != nil || tagged.Expiration != nil || !slices.Equal(tagged.ACLTags, []string{"tag:ci"}) || !tagged.Reusable || !tagged.Ephemeral {
		t.Errorf("tagged: %+v, %v", tagged, err)
	}
	if _, err := w.client.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{ACLTags: []string{"ci"}, Expiration: &soon}); err != nil {
		t.Errorf("tags without a namespace: %v", err)
	}
	// As headscale's tools write it: the owner as a number in a string or as a number.
	for _, body := range []string{`{"user":"2","reusable":true,"expiration":null}`, `{"user":2,"extra":{"ignored":1}}`} {
		if status, answer := w.call("POST", "/api/v1/preauthkey", body); status != 200 || !strings.Contains(answer, `"name":"anna@example.org"`) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}

	list := func(user Ref) (ids []ID) {
		ks, err := w.client.ListPreAuthKeys(w.ctx(), PreAuthKeyFilter{User: user})
		if err != nil {
			t.Error(err)
		}
		for _, k := range ks {
			ids = append(ids, k.ID)
		}
		return ids
	}
	if got := list(""); !slices.Equal(got, []ID{1, 2, 3, 4, 5}) {
		t.Errorf("all: %v", got)
	}
	if got := list("anna@example.org"); !slices.Equal(got, []ID{4, 5}) {
		t.Errorf("of one namespace: %v", got)
	}
	if _, body := w.call("GET", "/api/v1/preauthkey", ""); strings.Contains(body, k.Key) || strings.Contains(body, tagged.Key) {
		t.Error("secrets can be read")
	}

	// By id, by the whole key, and by what is shown of it.
	for _, req := range []ExpirePreAuthKeyRequest{{ID: 1}, {Key: tagged.Key}, {Key: w.st.Snapshot().PreAuthKey(3).Prefix}} {
		for range 2 { // a second time is no error
			if err := w.client.ExpirePreAuthKey(w.ctx(), req); err != nil {
				t.Errorf("expire %+v: %v", req, err)
			}
		}
	}
	for _, id := range []tailnet.PreAuthKeyID{1, 2, 3} {
		k := w.st.Snapshot().PreAuthKey(id)
		if !k.Revoked || k.Usable(noon) == nil || k.Expires.After(noon) {
			t.Errorf("key %d is still usable: %+v", id, k)
		}
	}
	ks, err := w.client.ListPreAuthKeys(w.ctx(), PreAuthKeyFilter{})
	if err != nil || ks[0].Usable || !ks[0].Revoked || !ks[3].Usable {
		t.Errorf("listed: %+v %+v, %v", ks[0], ks[3], err)
	}
	for _, req := range []ExpirePreAuthKeyRequest{{ID: 1}, {Key: tagged.Key}} {
		if err := w.client.DeletePreAuthKey(w.ctx(), req); err != nil {
			t.Errorf("delete %+v: %v", req, err)
		}
	}
	if got := list(""); !slices.Equal(got, []ID{3, 4, 5}) {
		t.Errorf("after deleting two: %v", got)
	}
}
