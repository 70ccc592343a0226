package derp

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailscale.com/tailcfg"
)

// mapServer serves a DERP map that a test can change.
type mapServer struct {
	*httptest.Server
	mu       sync.Mutex
	status   int
	body     string
	asked    int
	answered int // with a body
}

func serveMap(t *testing.T, body string) *mapServer {
	s := &mapServer{status: 200, body: body}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked++
		etag := fmt.Sprintf(`"%x"`, crc32.ChecksumIEEE([]byte(s.body)))
		if s.status == 200 && r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		s.answered++
		w.Header().Set("ETag", etag)
		w.WriteHeader(s.status)
		w.Write([]byte(s.body))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *mapServer) set(status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body = status, body
}

// counts returns how often it was asked, and how often it answered with a body.
func (s *mapServer) counts() (asked, answered int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.answered
}

// regionJSON is a DERP map with regions, each with a node of that name.
func regionJSON(names map[int]string) string {
	var parts []string
	for id, name := range names {
		parts = append(parts, fmt.Sprintf(`"%d":{"RegionID":%d,"RegionCode":"%s","Nodes":[{"Name":"%s","RegionID":%d,"HostName":"%s.example.com"}],"NewField":1}`, id, id, name, name, id, name))
	}
	return `{"Regions":{` + strings.Join(parts, ",") + `}}`
}

// regionsOf lists id=code, in order.
func regionsOf(m *tailcfg.DERPMap) string {
	var parts []string
	for _, id := range m.RegionIDs() {
		parts = append(parts, fmt.Sprintf("%d=%s", id, m.Regions[id].RegionCode))
	}
	return strings.Join(parts, " ")
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSourcesMerge(t *testing.T) {
	dir := t.TempDir()
	u1 := serveMap(t, regionJSON(map[int]string{1: "nyc", 2: "sfo", 3: "sin", 900: "fromurl"}))
	u2 := serveMap(t, regionJSON(map[int]string{2: "sfo2"}))
	f1 := writeFile(t, filepath.Join(dir, "a.yaml"), "regions:\n  1: null\n  900: {regioncode: home, nodes: [{name: h, hostname: h}]}\n  999: {regioncode: file, nodes: [{name: x, hostname: x}]}\n")
	f2 := writeFile(t, filepath.Join(dir, "b.yaml"), "regions:\n  901: {regioncode: clash, nodes: [{name: sin, hostname: h}]}\nhomeparams: {regionscore: {900: 0.5}}\n")
	var log bytes.Buffer
	s, err := NewSources(t.Context(), SourcesOptions{
		Embedded: &Embedded{ServerURL: mustURL(t, "http://192.0.2.1:8080"), RegionID: 999, Code: "skein"},
		Paths:    []string{f1, f2},
		URLs:     []string{u1.URL, u2.URL},
		Log:      slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	m := s.Current().Current
	if got, want := regionsOf(m), "2=sfo2 900=home 901=clash 999=skein"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if m.HomeParams == nil || m.HomeParams.RegionScore[900] != 0.5 {
		t.Errorf("home params %v", m.HomeParams)
	}
	if !strings.Contains(log.String(), "node of the same name") || !strings.Contains(log.String(), "region 3 of "+u1.URL) {
		t.Errorf("the clash of names is not logged:\n%s", &log)
	}
	if s.Current().Legacy != m {
		t.Error("without a pin both spellings are one")
	}
}

func TestSourcesRefresh(t *testing.T) {
	dir := t.TempDir()
	u := serveMap(t, regionJSON(map[int]string{1: "one"}))
	file := writeFile(t, filepath.Join(dir, "a.yaml"), "regions: {900: {regioncode: home, nodes: [{name: h, hostname: h}]}}")
	var mu sync.Mutex
	var changes []string
	o := SourcesOptions{Paths: []string{file}, URLs: []string{u.URL}, Every: time.Hour, OnChange: func(m *Maps) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, regionsOf(m.Current))
	}}
	s, err := NewSources(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	step := func(what, want string, wantChanges int) {
		t.Helper()
		s.Refresh(t.Context())
		mu.Lock()
		defer mu.Unlock()
		if got := regionsOf(s.Current().Current); got != want || len(changes) != wantChanges || changes[len(changes)-1] != want {
			t.Errorf("%s: %s, told %v; want %s and %d changes", what, got, changes, want, wantChanges)
		}
	}
	step("nothing new", "1=one 900=home", 1)
	if asked, answered := u.counts(); asked != 2 || answered != 1 {
		t.Errorf("asked %d times, answered %d: want the second one to be \"not modified\"", asked, answered)
	}
	u.set(200, regionJSON(map[int]string{1: "one", 2: "two"}))
	step("URL changed", "1=one 2=two 900=home", 2)
	for what, bad := range map[string]struct {
		status int
		body   string
	}{
		"server error": {500, "oops"}, "not JSON": {200, "<html>login</html>"}, "no regions": {200, "{}"},
		"bad region": {200, `{"Regions":{"7":{"RegionID":8}}}`}, "huge": {200, strings.Repeat(" ", maxMapBytes+1)}, "unexpected 304": {304, ""},
	} {
		u.set(bad.status, bad.body)
		step(what, "1=one 2=two 900=home", 2)
		if !s.failing && bad.status != 304 {
			t.Errorf("%s: not noticed", what)
		}
	}
	u.set(200, regionJSON(map[int]string{3: "three"}))
	writeFile(t, file, "regions: {900: {")
	step("file broken, URL back", "3=three 900=home", 3)
	writeFile(t, file, "regions: {900: {regioncode: new, nodes: [{name: h, hostname: h}]}}")
	step("file mended", "3=three 900=new", 4)

	o.Every = 0
	if err := s.Reconfigure(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	u.set(200, regionJSON(map[int]string{4: "four"}))
	step("refreshing switched off", "3=three 900=new", 4)
}

func TestSourcesReconfigure(t *testing.T) {
	dir := t.TempDir()
	good := writeFile(t, filepath.Join(dir, "a.yaml"), "regions: {900: {regioncode: home, nodes: [{name: h, hostname: h}]}}")
	bad := writeFile(t, filepath.Join(dir, "b.yaml"), "regions: {900: {regioncod: home}}")
	s, err := NewSources(t.Context(), SourcesOptions{Paths: []string{good}})
	if err != nil {
		t.Fatal(err)
	}
	before := s.Current()
	for what, o := range map[string]SourcesOptions{
		"bad file":     {Paths: []string{bad}},
		"missing file": {Paths: []string{filepath.Join(dir, "none")}},
		"bad URL":      {URLs: []string{"file:///etc/passwd"}},
		"no host":      {Embedded: &Embedded{ServerURL: mustURL(t, "http:///x"), RegionID: 1, Code: "a"}},
		"bad region":   {Embedded: &Embedded{ServerURL: mustURL(t, "http://a"), RegionID: 0, Code: "a"}},
	} {
		if err := s.Reconfigure(t.Context(), o); err == nil {
			t.Errorf("%s: no error", what)
		}
		if s.Current() != before {
			t.Fatalf("%s: the map changed", what)
		}
		if _, err := NewSources(t.Context(), o); err == nil {
			t.Errorf("%s at the start: no error", what)
		}
	}
	if err := s.Reconfigure(t.Context(), SourcesOptions{Embedded: &Embedded{ServerURL: mustURL(t, "https://a.example.com"), RegionID: 5, Code: "five"}}); err != nil {
		t.Fatal(err)
	}
	if got := regionsOf(s.Current().Current); got != "5=five" {
		t.Error(got)
	}
}

// TestSourcesCache: what a URL said last survives a restart without the internet.
func TestSourcesCache(t *testing.T) {
	dir := t.TempDir()
	u := serveMap(t, regionJSON(map[int]string{1: "one"}))
	o := SourcesOptions{URLs: []string{u.URL}, CacheDir: dir}
	if _, err := NewSources(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	u.set(503, "")
	s, err := NewSources(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := regionsOf(s.Current().Current); got != "1=one" {
		t.Errorf("after a restart: %q", got)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	writeFile(t, filepath.Join(dir, files[0].Name()), "rubbish")
	if s, err = NewSources(t.Context(), o); err != nil || len(s.Current().Current.Regions) != 0 {
		t.Errorf("rubbish in the cache: %v, %v", regionsOf(s.Current().Current), err)
	}
	// A source that failed is asked again even though refreshing is off.
	u.set(200, regionJSON(map[int]string{2: "two"}))
	s.Refresh(t.Context())
	if got := regionsOf(s.Current().Current); got != "2=two" {
		t.Errorf("when the URL is back: %q", got)
	}
}

func TestSourcesSlowURL(t *testing.T) {
	stop := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-stop }))
	defer slow.Close()
	defer close(stop)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no time at all
	s, err := NewSources(ctx, SourcesOptions{URLs: []string{slow.URL}, Embedded: &Embedded{ServerURL: mustURL(t, "http://192.0.2.1"), RegionID: 900, Code: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := regionsOf(s.Current().Current); got != "900=a" {
		t.Error(got)
	}
}

// TestSourcesRun: Run refreshes, follows Reconfigure, and ends with its context.
func TestSourcesRun(t *testing.T) {
	u := serveMap(t, regionJSON(map[int]string{1: "one"}))
	var changes atomic.Int64
	o := SourcesOptions{URLs: []string{u.URL}, Every: time.Millisecond, OnChange: func(*Maps) { changes.Add(1) }}
	s, err := NewSources(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	u.set(200, regionJSON(map[int]string{2: "two"}))
	until(t, "the new map", func() bool { return regionsOf(s.Current().Current) == "2=two" })
	o.Every = time.Hour
	if err := s.Reconfigure(ctx, o); err != nil {
		t.Fatal(err)
	}
	o.Every = time.Millisecond
	if err := s.Reconfigure(ctx, o); err != nil {
		t.Fatal(err)
	}
	u.set(200, regionJSON(map[int]string{3: "three"}))
	until(t, "the newer map", func() bool { return regionsOf(s.Current().Current) == "3=three" })
	cancel()
	<-done
	if changes.Load() != 3 {
		t.Errorf("told of %d changes, want 3", changes.Load())
	}
}

// TestSourcesRenewCertificate: a new certificate means a new pin, and clients are told.
func TestSourcesRenewCertificate(t *testing.T) {
	var now atomic.Int64
	now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Unix())
	server := mustURL(t, "http://192.0.2.1:8080")
	cert, err := SelfSigned(filepath.Join(t.TempDir(), "c.pem"), CertHosts(server), func() time.Time { return time.Unix(now.Load(), 0) })
	if err != nil {
		t.Fatal(err)
	}
	var pins []string
	s, err := NewSources(t.Context(), SourcesOptions{
		Embedded: &Embedded{ServerURL: server, RegionID: 900, Code: "a", Cert: cert},
		OnChange: func(m *Maps) { pins = append(pins, m.Current.Regions[900].Nodes[0].CertName) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Refresh(t.Context())
	now.Add(int64((selfSignedValid - selfSignedRenew + time.Hour) / time.Second))
	s.Refresh(t.Context())
	if len(pins) != 2 || pins[0] == pins[1] || pins[1] != cert.pin() {
		t.Errorf("pins %v, the certificate is %s", pins, cert.pin())
	}
}

func TestEmbeddedRegion(t *testing.T) {
	dir := t.TempDir()
	node := func(e Embedded) (*tailcfg.DERPNode, error) {
		e.RegionID, e.Code = 900, "a"
		r, err := e.region()
		if err != nil {
			return nil, err
		}
		return r.Nodes[0], nil
	}
	certFor := func(u *url.URL) *Certificate {
		c, err := SelfSigned(filepath.Join(dir, "c.pem"), CertHosts(u), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tt := range []struct {
		server string
		e      Embedded
		want   tailcfg.DERPNode // Name and RegionID left out; CertName "pin" for the certificate's
	}{
		{"http://192.0.2.1:8080", Embedded{STUNPort: 3478}, tailcfg.DERPNode{HostName: "192.0.2.1", CertName: "pin", IPv4: "192.0.2.1", IPv6: "none", STUNPort: 3478, DERPPort: 8080}},
		{"http://192.0.2.1", Embedded{}, tailcfg.DERPNode{HostName: "192.0.2.1", CertName: "pin", IPv4: "192.0.2.1", IPv6: "none", STUNPort: -1, DERPPort: 80, CanPort80: true}},
		{"http://192.0.2.1:80", Embedded{IPv6: "2001:db8::1"}, tailcfg.DERPNode{HostName: "192.0.2.1", CertName: "pin", IPv4: "192.0.2.1", IPv6: "2001:db8::1", STUNPort: -1, DERPPort: 80, CanPort80: true}},
		{"http://[2001:db8::1]:8080", Embedded{}, tailcfg.DERPNode{HostName: ipv6Name, CertName: "pin", IPv4: "none", IPv6: "2001:db8::1", STUNPort: -1, DERPPort: 8080}},
		{"http://skein.example.com:8080", Embedded{}, tailcfg.DERPNode{HostName: "skein.example.com", CertName: "pin", STUNPort: -1, DERPPort: 8080}},
		{"http://skein.example.com", Embedded{IPv4: "192.0.2.1", IPv6: "none"}, tailcfg.DERPNode{HostName: "skein.example.com", CertName: "pin", IPv4: "192.0.2.1", IPv6: "none", STUNPort: -1, DERPPort: 80, CanPort80: true}},
		{"https://skein.example.com", Embedded{}, tailcfg.DERPNode{HostName: "skein.example.com", STUNPort: -1, DERPPort: 443}},
		{"https://skein.example.com:8443", Embedded{}, tailcfg.DERPNode{HostName: "skein.example.com", STUNPort: -1, DERPPort: 8443}},
	} {
		u := mustURL(t, tt.server)
		tt.e.ServerURL, tt.e.Cert = u, certFor(u)
		got, err := node(tt.e)
		if err != nil {
			t.Errorf("%s: %v", tt.server, err)
			continue
		}
		if tt.want.CertName != "" {
			tt.want.CertName = tt.e.Cert.pin()
		}
		tt.want.Name, tt.want.RegionID = "900-embedded", 900
		if *got != tt.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.server, *got, tt.want)
		}
	}
	for _, bad := range []string{"http://0.0.0.0:8080", "http://[::]", "http://[fe80::1%25eth0]", "http://a:0", "http://a:99999", "ftp://a", "http://"} {
		if n, err := node(Embedded{ServerURL: mustURL(t, bad)}); err == nil {
			t.Errorf("%s was accepted: %+v", bad, *n)
		}
	}
	if _, err := node(Embedded{ServerURL: mustURL(t, "http://a"), IPv4: "none", IPv6: "none"}); err == nil {
		t.Error("no family at all was accepted")
	}
}

func TestMapsFor(t *testing.T) {
	pinned := func(id int) *tailcfg.DERPRegion {
		return &tailcfg.DERPRegion{RegionID: id, RegionCode: "a", Nodes: []*tailcfg.DERPNode{{Name: fmt.Sprint(id), RegionID: id, HostName: "h", CertName: pinPrefix + pinOfA}}}
	}
	quiet := pinned(902)
	quiet.Nodes[0].CertName, quiet.NoMeasureNoHome = "", true
	m := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{900: pinned(900), 901: pinned(901), 902: quiet}}
	before := m.Clone()
	maps := newMaps(m, 900)
	for _, v := range []tailcfg.CapabilityVersion{CapVerPinnedCert, 142, 1000} {
		if maps.For(v) != m {
			t.Errorf("capver %d does not get the map as it is", v)
		}
	}
	old := maps.For(CapVerPinnedCert - 1)
	if n := old.Regions[900].Nodes[0]; n.CertName != "" || !n.InsecureForTests {
		t.Errorf("our node for older clients: %+v", n)
	}
	if n := old.Regions[901].Nodes[0]; n.CertName == "" || n.InsecureForTests {
		t.Errorf("somebody else's node for older clients: %+v", n)
	}
	if !old.Regions[902].Avoid {
		t.Error("a region without home is not avoided by older clients")
	}
	if !reflect.DeepEqual(m, before) {
		t.Error("the map itself was changed")
	}
	if p := newMaps(m, 0); p.Legacy.Regions[900].Nodes[0].InsecureForTests {
		t.Error("insecure without an embedded region")
	}
	if !slices.Contains(Paths, "/derp") {
		t.Error("Paths")
	}
}
