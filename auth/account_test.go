package auth

import (
	"errors"
	"log/slog"
	"net/netip"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// accountsEnv is an Accounts over a real database, with the users junyao and other.
type accountsEnv struct {
	*env
	a *Accounts
}

func newAccountsEnv(t testing.TB) *accountsEnv {
	t.Helper()
	e := &accountsEnv{env: &env{t: t}}
	e.clock.Store(&statetest.Epoch)
	log := slog.New(slog.DiscardHandler)
	d, err := db.Open(ctx, db.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	e.st, err = state.Open(ctx, state.Options{
		Store: d, Now: e.now, RestartGrace: 1000 * time.Hour, Log: log, DNS: &dns.Settings{Base: "skein.internal"},
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10")}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.st.Close)
	for name, id := range map[string]*tailnet.UserID{"junyao": &e.junyao, "other": &e.other} {
		e.update(func(tx *state.Tx) error {
			u := tx.NewUser(name)
			*id = u.ID
			return tx.PutUser(u)
		})
	}
	e.a = NewAccounts(AccountsOptions{State: e.st, Store: d, ServerURL: "https://vpn.example.com", Secret: []byte("x"), Now: e.now, Log: log})
	return e
}

func TestPasswordHash(t *testing.T) {
	const pw = "seven brown foxes"
	h := hashPassword(pw)
	if h == hashPassword(pw) || strings.Contains(h, "fox") || !strings.HasPrefix(h, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("the hash is %s", h)
	}
	if !verifyPassword(h, pw) || verifyPassword(h, pw+" ") || verifyPassword(h, "") || verifyPassword(dummyHash, "") || verifyPassword(dummyHash, pw) {
		t.Error("wrong answers")
	}
	if !verifyPassword(hashPassword("zwölf Köpfe sehen mehr"), "zwo\u0308lf Ko\u0308pfe sehen mehr") {
		t.Error("the same letters, typed on another keyboard, are another password")
	}
	for _, bad := range []string{
		"", "x", strings.Replace(h, "argon2id", "argon2i", 1), strings.Replace(h, "v=19", "v=16", 1), strings.Replace(h, "m=19456", "m=99999999", 1),
		strings.Replace(h, "t=2", "t=0", 1), strings.Replace(h, "t=2", "t=1000000", 1), strings.Replace(h, "p=1", "p=0", 1), h + "$", h[:len(h)-30], "$argon2id$v=19$m=19456,t=2,p=1$$",
	} {
		if verifyPassword(bad, pw) {
			t.Errorf("%q is right", bad)
		}
	}
}

func FuzzVerifyPassword(f *testing.F) {
	f.Add(dummyHash, "x")
	f.Add("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "x")
	f.Fuzz(func(t *testing.T, hash, pw string) {
		if strings.Contains(hash, "m=") && !strings.Contains(hash, "m=8,") { // large ones are slow, and not the point
			return
		}
		verifyPassword(hash, pw)
	})
}

func TestCheckPassword(t *testing.T) {
	for pw, why := range map[string]string{
		"seven brown foxes": "", "zwölf Köpfe!": "", "correct horse battery staples": "", strings.Repeat("abcdefg ", 100): "",
		"elevenchars": "fewer than 12", "äöüäöüäöüäö": "fewer than 12", "aaaaaaaaaaaaaaaa": "use at least 5", "Password 1234!": "tried first",
		"annaannaanna123": "tried first", "qwertyuiopas": "tried first", "abcdefghijkl": "tried first", "correct horse battery staple": "tried first",
		"new\nline in the middle": "cannot be typed", "\xff\xfe not text at all": "cannot be typed", strings.Repeat("long", 300): "longer than",
	} {
		err := CheckPassword("anna", pw)
		if why == "" && err != nil || why != "" && (tailnet.CodeOf(err) != tailnet.Invalid || !strings.Contains(err.Error(), why)) {
			t.Errorf("%q: %v, want %q", pw, err, why)
		}
	}
}

// Of many who use a link at the same moment, one succeeds.
func TestLinkRace(t *testing.T) {
	e := newAccountsEnv(t)
	a := e.a
	url, _, err := a.CreateLink(ctx, LinkRequest{Role: tailnet.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []string
	for _, name := range []string{"anna", "ben", "cleo", "dora"} {
		wg.Go(func() {
			u, err := a.UseLink(ctx, path.Base(url), name, "seven brown foxes")
			if err == nil {
				mu.Lock()
				won = append(won, u.Name)
				mu.Unlock()
			} else if tailnet.CodeOf(err) != tailnet.NotFound {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || len(e.st.Snapshot().Users()) != 3 { // junyao and other were there
		t.Errorf("%v have used one link; %d users", won, len(e.st.Snapshot().Users()))
	}
}

// A link that fails is not lost; one of the first administrator may take over a namespace, others not.
func TestLinkNames(t *testing.T) {
	e := newAccountsEnv(t)
	a := e.a
	url, _, err := a.CreateLink(ctx, LinkRequest{Role: tailnet.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.UseLink(ctx, path.Base(url), "junyao", "seven brown foxes"); tailnet.CodeOf(err) != tailnet.Conflict {
		t.Errorf("a link of an administrator takes over a namespace: %v", err)
	}
	if _, err := a.UseLink(ctx, path.Base(url), "anna", "seven brown foxes"); err != nil {
		t.Error(err)
	}
	if _, _, err := a.CreateLink(ctx, LinkRequest{Name: "junyao"}); tailnet.CodeOf(err) != tailnet.Conflict {
		t.Error(err)
	}
	if _, _, err := a.CreateLink(ctx, LinkRequest{User: 99}); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Error(err)
	}

	e = newAccountsEnv(t)
	a = e.a
	if url, _, err = a.FirstLink(ctx); err != nil {
		t.Fatal(err)
	}
	u, err := a.UseLink(ctx, path.Base(url), "junyao", "seven brown foxes")
	if err != nil || u.ID != e.junyao || u.Role != tailnet.RoleOwner {
		t.Errorf("%+v, %v", u, err)
	}
}

// An unknown name costs as much as a known one.
func TestUnknownNamesTakeAsLong(t *testing.T) {
	if parts := strings.Split(dummyHash, "$"); parts[3] != strings.Split(hashPassword("x"), "$")[3] || len(dummyHash) != len(hashPassword("x")) {
		t.Errorf("the hash for nobody asks for less work: %s", dummyHash)
	}
	e := newAccountsEnv(t)
	a := e.a
	addr := netip.MustParseAddr("192.0.2.1")
	for _, name := range []string{"nobody", "junyao", "", strings.Repeat("x", 10000)} { // junyao has no account
		if _, err := a.SignIn(ctx, name, "seven brown foxes", addr); !errors.Is(err, errSignIn) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestAttempts(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	a := newAttempts()
	addr := netip.MustParseAddr("192.0.2.1")
	for i := range perAccount.burst {
		if _, err := a.begin(now, addr, "anna"); err != nil {
			t.Fatal(i, err)
		}
	}
	_, err := a.begin(now, addr, "anna")
	var we *WaitError
	if !errors.As(err, &we) || we.Wait < 60*time.Second || we.Wait > 62*time.Second || tailnet.CodeOf(err) != tailnet.Exhausted {
		t.Fatalf("%v", err)
	}
	if _, err := a.begin(now.Add(-time.Hour), addr, "anna"); err == nil { // the clock was set back
		t.Error("a clock that goes back opens the door")
	}
	ok1, err := a.begin(now.Add(we.Wait), addr, "anna")
	if err != nil {
		t.Fatal(err)
	}
	ok1() // it was the right password
	if _, err := a.begin(now.Add(we.Wait), addr, "anna"); err != nil {
		t.Error("a sign-in that succeeded was counted")
	}
	// Many names cannot fill the memory.
	a = newAttempts()
	for i := range 3 * maxAttempts {
		b := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
		_, _ = a.begin(now, netip.AddrFrom4(b), strings.Repeat("x", i%7)+string(rune('a'+i%26))+netip.AddrFrom4(b).String())
	}
	if len(a.accounts) > maxAttempts+1 || len(a.addresses) > maxAttempts+1 {
		t.Errorf("%d names and %d addresses are remembered", len(a.accounts), len(a.addresses))
	}
	_, _ = a.begin(now.Add(time.Hour), addr, "")
	if len(a.accounts) != 0 || len(a.addresses) != 1 {
		t.Errorf("after an hour %d names and %d addresses are remembered", len(a.accounts), len(a.addresses))
	}
}

// What is under way with a passkey is good in one browser, for one purpose, for a while, and for one secret.
func TestSealedCeremonies(t *testing.T) {
	e := newAccountsEnv(t)
	a := e.a
	c, err := a.BeginPasskeySignIn("browser 1")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := a.unseal(c.State, "sign in\x00browser 1"); err != nil || s.Challenge == "" {
		t.Fatalf("%+v, %v", s, err)
	}
	other := NewAccounts(a.o)
	other.o.Secret = []byte("y")
	for what, f := range map[string]func() error{
		"another browser": func() error { _, err := a.unseal(c.State, "sign in\x00browser 2"); return err },
		"another purpose": func() error { _, err := a.unseal(c.State, "browser 1\x00add\x001"); return err },
		"another server":  func() error { _, err := other.unseal(c.State, "sign in\x00browser 1"); return err },
		"a bit":           func() error { _, err := a.unseal("A"+c.State[1:], "sign in\x00browser 1"); return err },
		"nothing":         func() error { _, err := a.unseal("", "sign in\x00browser 1"); return err },
	} {
		if err := f(); !errors.Is(err, errCeremony) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !a.passkeys.once("c", e.now()) || a.passkeys.once("c", e.now()) {
		t.Error("a challenge is not good exactly once")
	}
	for _, junk := range []string{"", "{}", "null", `{"id":"x","rawId":"eA","type":"public-key","response":{}}`, strings.Repeat("[", 10000)} {
		if _, err := a.FinishPasskeySignIn(ctx, "browser 1", c.State, []byte(junk), netip.MustParseAddr("192.0.2.1")); tailnet.CodeOf(err) != tailnet.Invalid {
			t.Errorf("%.30q: %v", junk, err)
		}
	}
	e.pass(passkeyTTL)
	if _, err := a.unseal(c.State, "sign in\x00browser 1"); !errors.Is(err, errCeremony) {
		t.Errorf("too late: %v", err)
	}
}

func TestPasskeysNeedAName(t *testing.T) {
	for url, want := range map[string]string{
		"https://vpn.example.com": "", "https://vpn.example.com:8443": "", "http://localhost:8080": "", "http://vpn.example.com": "https",
		"http://192.0.2.1:8080": "instead of an address", "https://[2001:db8::1]": "instead of an address",
	} {
		_, err := newRelyingParty(url)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// Who is suspended has no session, and gets none; who waits for approval may look.
func TestSuspended(t *testing.T) {
	e := newAccountsEnv(t)
	a := e.a
	status := func(s tailnet.UserStatus) *tailnet.User {
		e.update(func(tx *state.Tx) error {
			u := *tx.User(e.junyao)
			u.Status = s
			return tx.PutUser(&u)
		})
		return e.st.Snapshot().User(e.junyao)
	}
	secret, s, err := a.BeginSession(ctx, SessionRequest{User: status(tailnet.UserWaiting), Method: "password"})
	if err != nil {
		t.Fatal(err)
	}
	if got, u, err := a.Session(ctx, secret); err != nil || got == nil || got.ID != s.ID || u.ID != e.junyao {
		t.Errorf("%+v, %+v, %v", got, u, err)
	}
	if _, _, err := a.BeginSession(ctx, SessionRequest{User: status(tailnet.UserSuspended)}); tailnet.CodeOf(err) != tailnet.Denied {
		t.Errorf("a session of somebody who is suspended: %v", err)
	}
	if got, _, err := a.Session(ctx, secret); got != nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	status(tailnet.UserActive)
	if got, _, err := a.Session(ctx, secret); got == nil || err != nil {
		t.Errorf("after the suspension: %+v, %v", got, err)
	}
}
