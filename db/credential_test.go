package db

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestCredentialUses(t *testing.T) {
	d := openTest(t)
	mustCommit(t, d, 0, sampleChanges())
	want := map[string]time.Time{"kAbc": t0.Add(time.Hour)}
	for _, uses := range []map[string]time.Time{nil, {"kAbc": t0, "kGone": t0}, want} {
		if err := d.SaveCredentialUses(ctx, 1, uses); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.CredentialUses(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diff(want, got); diff != "" {
		t.Error(diff) // among them kGone, which no credential has
	}
	// A commit of the credential leaves its use alone.
	c := sampleCredential()
	c.Description = "changed"
	mustCommit(t, d, 1, &tailnet.Changes{PutCredentials: []*tailnet.Credential{c}})
	if got, err := d.CredentialUses(ctx, 1); err != nil || !got["kAbc"].Equal(want["kAbc"]) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := d.CredentialUses(canceled(), 1); err == nil {
		t.Error("no error")
	}
}

func TestAccessTokens(t *testing.T) {
	d := openTest(t)
	tok := &tailnet.AccessToken{Hash: [32]byte{1, 31: 255}, Tailnet: 1, Credential: "kAbc", Scopes: []string{"all"}, Tags: []string{"tag:a"}, Created: t0, Expires: t0.Add(time.Hour)}
	if err := d.PutAccessToken(ctx, tok); err != nil {
		t.Fatal(err)
	}
	if err := d.PutAccessToken(ctx, tok); err == nil {
		t.Error("the same token is stored twice")
	}
	got, err := d.AccessToken(ctx, 1, tok.Hash)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diff(tok, got); diff != "" {
		t.Error(diff)
	}
	for _, q := range []struct {
		tailnet tailnet.ID
		hash    [32]byte
	}{{2, tok.Hash}, {1, [32]byte{}}} {
		if got, err := d.AccessToken(ctx, q.tailnet, q.hash); got != nil || err != nil {
			t.Errorf("%v %v", got, err)
		}
	}
	if n, err := d.DeleteAccessTokensBefore(ctx, t0); n != 0 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if n, err := d.DeleteAccessTokensBefore(ctx, t0.Add(2*time.Hour)); n != 1 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if got, err := d.AccessToken(ctx, 1, tok.Hash); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
}
