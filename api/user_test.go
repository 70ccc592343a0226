package api

import (
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

func TestUsers(t *testing.T) {
	w := newWorld(t)
	if us, err := w.client.ListUsers(w.ctx(), UserFilter{}); err != nil || len(us) != 0 {
		t.Fatalf("users of a new tailnet: %v, %v", us, err)
	}
	if _, body := w.call("GET", "/api/v1/user", ""); body != "{\"users\":[]}\n" {
		t.Errorf("an empty list is %s", body)
	}
	u, err := w.client.CreateUser(w.ctx(), CreateUserRequest{Name: "anna@example.org", DisplayName: "Anna", Email: "anna@example.org"})
	if err != nil || u.ID != 1 || u.DisplayName != "Anna" || !u.CreatedAt.Equal(noon) {
		t.Fatalf("created %+v, %v", u, err)
	}
	w.user("junyao")
	if _, body := w.call("GET", "/api/v1/user?name=junyao", ""); body != `{"users":[{"id":"2","name":"junyao","createdAt":"2022-09-15T12:00:00Z",`+
		`"displayName":"","email":"","providerId":"","provider":"","profilePicUrl":"","status":"active","role":"member"}]}`+"\n" {
		t.Errorf("a user in JSON is %s", body)
	}
	for _, tt := range []struct {
		f    UserFilter
		want int
	}{
		{UserFilter{}, 2}, {UserFilter{ID: 2}, 1}, {UserFilter{ID: 3}, 0}, {UserFilter{Name: "junyao"}, 1}, {UserFilter{Name: "jun"}, 0},
		{UserFilter{Email: "anna@example.org"}, 1}, {UserFilter{Email: "anna@example.org", ID: 2}, 0},
	} {
		if us, err := w.client.ListUsers(w.ctx(), tt.f); err != nil || len(us) != tt.want {
			t.Errorf("%+v: %d users, %v; want %d", tt.f, len(us), err, tt.want)
		}
	}

	// By name, by name in capitals and by id; a name with an @ in the path.
	for _, step := range []struct{ from, to string }{{"anna@example.org", "anna"}, {"ANNA", "a.b_c-d"}, {"1", "anna@example.net"}, {"1", "anna@example.net"}} {
		if u, err := w.client.RenameUser(w.ctx(), Ref(step.from), step.to); err != nil || u.Name != step.to || u.ID != 1 || u.DisplayName != "Anna" {
			t.Errorf("rename %s to %s: %+v, %v", step.from, step.to, u, err)
		}
	}

	if _, err := w.client.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{User: "junyao"}); err != nil {
		t.Fatal(err)
	}
	if err := w.client.DeleteUser(w.ctx(), "junyao"); err != nil {
		t.Fatal(err)
	}
	if ks := w.st.Snapshot().PreAuthKeys(); len(ks) != 0 {
		t.Errorf("keys of a deleted namespace remain: %v", ks)
	}
	if err := w.client.DeleteUser(w.ctx(), "junyao"); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
	if u := w.user("junyao"); u.ID != 3 {
		t.Errorf("a new namespace has the id %d: ids must not be used again", u.ID)
	}
}

func TestUserNames(t *testing.T) {
	for _, name := range []string{"a", "junyao", "anna@example.org", "a.b", "a_b", "a-b", "0a", "x9"} {
		if err := tailnet.CheckUserName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-", ".", "..", "a b", "a/b", "a\n", "a\x00", "ä", "A", "@a", "a@", "1", "007", "\xff"} {
		if err := tailnet.CheckUserName(name); tailnet.CodeOf(err) != tailnet.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}
