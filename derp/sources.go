package derp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"
)

// How the current map comes about:
//
//	URLs, in order ──► files, in order ──► the embedded region ──► Maps, published if anything differs ──► OnChange
//
// What comes later replaces a region of the same id, or takes it out with a null region. A URL that does not answer, or answers
// nonsense, counts with what it last said; a file that went bad, likewise.

const (
	startTimeout = 5 * time.Second // for URLs at the start, which does not wait longer for them
	fetchTimeout = 15 * time.Second
	retryFirst   = 10 * time.Second // after a refresh in which a source failed; doubled up to the usual interval
	certCheck    = 12 * time.Hour   // at the latest, see whether the certificate is due
)

// SourcesOptions says where DERP maps come from.
type SourcesOptions struct {
	Embedded *Embedded // the region of this process; nil: not in the map
	Paths    []string  // files, YAML or JSON; see ParseMap
	URLs     []string  // http or https, JSON

	// Every is the time between refreshes of URLs and files; zero: they are read once, at the start or by Reconfigure.
	Every time.Duration

	// CacheDir keeps what URLs said last, so that a restart does not depend on them. Empty: not kept.
	CacheDir string

	// OnChange is told of each new map, one at a time. It must not call Sources. Nil: nobody is told.
	OnChange func(*Maps)

	Client *http.Client // nil: one with a time limit
	Log    *slog.Logger // nil: discarded
}

// Sources keeps the current DERP map.
type Sources struct {
	cur  atomic.Pointer[Maps]
	wake chan struct{} // one slot: Run looks at the options again

	mu      sync.Mutex // held while refreshing
	o       SourcesOptions
	fetched map[string]*fetched         // by URL
	files   map[string]*tailcfg.DERPMap // by path
	failing bool                        // a source failed in the last refresh
}

// fetched is what a URL said last.
type fetched struct {
	m    *tailcfg.DERPMap
	etag string
}

// NewSources reads all sources and publishes the first map. A bad file or embedded region is an error; a URL that fails is only
// logged, because it may be back later and clients keep what they have. It waits 5 s for URLs, less if ctx ends.
func NewSources(ctx context.Context, o SourcesOptions) (*Sources, error) {
	s := &Sources{
		wake:    make(chan struct{}, 1),
		fetched: map[string]*fetched{},
		files:   map[string]*tailcfg.DERPMap{},
	}
	s.cur.Store(newMaps(&tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}, 0))
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.Reconfigure(ctx, o); err != nil {
		return nil, err
	}
	return s, nil
}

// Current returns the map in force. It never blocks; the value never changes.
func (s *Sources) Current() *Maps { return s.cur.Load() }

// Reconfigure changes to other options, reads all sources anew and publishes the result. On error everything stays as it was.
func (s *Sources) Reconfigure(ctx context.Context, o SourcesOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: fetchTimeout}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range o.URLs {
		if p, err := url.Parse(u); err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https" {
			return fmt.Errorf("derp.urls: %q is not a http:// or https:// address", u)
		}
	}
	files := map[string]*tailcfg.DERPMap{}
	for _, path := range o.Paths {
		m, err := readMapFile(path)
		if err != nil {
			return err
		}
		files[path] = m
	}
	if o.Embedded != nil {
		if _, err := o.Embedded.region(); err != nil {
			return err
		}
	}
	s.o, s.files = o, files
	s.failing = false
	s.fetchAll(ctx)
	if err := s.publish(); err != nil {
		return err
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// SetOthers says which relays of other servers are in the embedded region, and publishes that.
func (s *Sources) SetOthers(nodes []*tailcfg.DERPNode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Embedded == nil {
		return nil
	}
	e := *s.o.Embedded
	e.Others = nodes
	if _, err := e.region(); err != nil {
		return err
	}
	s.o.Embedded = &e
	return s.publish()
}

// Run refreshes the map until ctx ends. Between refreshes it sleeps for Every, less while a source fails.
func (s *Sources) Run(ctx context.Context) {
	retry := retryFirst
	for {
		s.mu.Lock()
		every, failing := s.o.Every, s.failing
		s.mu.Unlock()
		wait := certCheck
		if every > 0 {
			wait = min(wait, every)
		}
		if failing {
			wait = min(wait, retry)
			retry *= 2
		} else {
			retry = retryFirst
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-s.wake:
			t.Stop()
			retry = retryFirst
			continue
		case <-t.C:
		}
		s.Refresh(ctx)
	}
}

// Refresh looks at the certificate and, if refreshing is switched on or a source has failed, at files and URLs, and publishes what
// is new. Failures are logged; what failed counts with its last good state.
func (s *Sources) Refresh(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.o.Embedded; e != nil && e.Cert != nil {
		if _, err := e.Cert.Renew(); err != nil {
			s.o.Log.Error("the TLS certificate cannot be renewed; the old one stays in use", "err", err)
		}
	}
	if s.o.Every > 0 || s.failing {
		s.failing = false
		for _, path := range s.o.Paths {
			m, err := readMapFile(path)
			if err != nil {
				s.o.Log.Error("DERP map file unusable; its last good contents stay in use", "err", err)
				s.failing = true
				continue
			}
			s.files[path] = m
		}
		s.fetchAll(ctx)
	}
	if err := s.publish(); err != nil {
		s.o.Log.Error("DERP map unusable; the old one stays in use", "err", err)
	}
}

func readMapFile(path string) (*tailcfg.DERPMap, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("derp.paths: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMapBytes+1))
	if err != nil {
		return nil, fmt.Errorf("derp.paths: %w", err)
	}
	m, err := ParseMap(data)
	if err != nil {
		return nil, fmt.Errorf("derp.paths: %s: %w", path, err)
	}
	return m, nil
}

// fetchAll asks all URLs at once and waits for all. s.mu is held.
func (s *Sources) fetchAll(ctx context.Context) {
	keep := map[string]*fetched{}
	results := make([]*fetched, len(s.o.URLs))
	errs := make([]error, len(s.o.URLs))
	var wg sync.WaitGroup
	for i, u := range s.o.URLs {
		wg.Go(func() { results[i], errs[i] = s.fetch(ctx, u, s.fetched[u]) })
	}
	wg.Wait()
	for i, u := range s.o.URLs {
		if errs[i] == nil {
			keep[u] = results[i]
			continue
		}
		s.failing = true
		old := s.fetched[u]
		if old == nil {
			old = s.readCache(u)
		}
		if old == nil {
			s.o.Log.Error("DERP map cannot be fetched, and there is no older one: its relays are missing until it can", "url", u, "err", errs[i])
			continue
		}
		s.o.Log.Warn("DERP map cannot be fetched; the old one stays in use", "url", u, "err", errs[i])
		keep[u] = old
	}
	s.fetched = keep
}

// fetch asks one URL. It returns old when that is still right.
func (s *Sources) fetch(ctx context.Context, u string, old *fetched) (*fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if old != nil && old.etag != "" {
		req.Header.Set("If-None-Match", old.etag)
	}
	res, err := s.o.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotModified && old != nil {
		return old, nil
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s", res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxMapBytes+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxMapBytes {
		return nil, fmt.Errorf("the answer is longer than %d bytes", maxMapBytes)
	}
	m, err := parseFetchedMap(body)
	if err != nil {
		return nil, err
	}
	if path := s.cachePath(u); path != "" && (old == nil || !reflect.DeepEqual(old.m, m)) {
		if err := writeSecret(path, body, true); err != nil {
			s.o.Log.Warn("DERP map cannot be kept for the next start", "url", u, "err", err)
		}
	}
	return &fetched{m, res.Header.Get("ETag")}, nil
}

// cachePath is where the last answer of a URL is kept, "" for nowhere.
func (s *Sources) cachePath(u string) string {
	if s.o.CacheDir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(u))
	return filepath.Join(s.o.CacheDir, "derpmap-"+hex.EncodeToString(sum[:8])+".json")
}

// readCache returns what an earlier process was told by a URL, or nil.
func (s *Sources) readCache(u string) *fetched {
	path := s.cachePath(u)
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	m, err := parseFetchedMap(bytes.TrimSpace(data))
	if err != nil {
		s.o.Log.Warn("the DERP map kept from an earlier run is unusable", "url", u, "err", err)
		return nil
	}
	return &fetched{m: m}
}

// publish merges the sources and publishes the result if it differs from what is current. s.mu is held.
func (s *Sources) publish() error {
	merged := &mergedMap{m: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}, from: map[int]string{}}
	for _, u := range s.o.URLs {
		if f := s.fetched[u]; f != nil {
			merged.add(f.m, u, s.o.Log)
		}
	}
	for _, path := range s.o.Paths {
		merged.add(s.files[path], path, s.o.Log)
	}
	own := 0
	if e := s.o.Embedded; e != nil {
		r, err := e.region()
		if err != nil {
			return err
		}
		own = e.RegionID
		merged.add(&tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{own: r}}, "the embedded relay", s.o.Log)
	}
	if len(merged.m.Regions) == 0 {
		s.o.Log.Error("there is no DERP relay at all: clients do not get beyond \"starting\" until there is one")
	}
	next, old := newMaps(merged.m, own), s.cur.Load()
	if reflect.DeepEqual(next, old) {
		return nil
	}
	s.cur.Store(next)
	if s.o.OnChange != nil {
		s.o.OnChange(next)
	}
	return nil
}

// mergedMap is a map in the making.
type mergedMap struct {
	m    *tailcfg.DERPMap
	from map[int]string // region id → the source that gave it
}

// add lays src over the map. Sources know nothing of each other, so two of them may use one node name for different regions; as
// names must be unique in the whole map, the region of the earlier source has to go.
func (g *mergedMap) add(src *tailcfg.DERPMap, source string, log *slog.Logger) {
	for _, id := range src.RegionIDs() {
		r := src.Regions[id]
		if r == nil {
			delete(g.m.Regions, id)
			continue
		}
		for _, other := range slices.Sorted(maps.Keys(g.m.Regions)) {
			if name, ok := sharedName(r, g.m.Regions[other]); ok && other != id {
				log.Warn("two DERP regions have a node of the same name; the earlier one is left out", "name", name,
					"left_out", fmt.Sprintf("region %d of %s", other, g.from[other]), "kept", fmt.Sprintf("region %d of %s", id, source))
				delete(g.m.Regions, other)
			}
		}
		g.m.Regions[id], g.from[id] = r, source
	}
	if src.HomeParams != nil {
		if g.m.HomeParams == nil {
			g.m.HomeParams = &tailcfg.DERPHomeParams{RegionScore: map[int]float64{}}
		}
		maps.Copy(g.m.HomeParams.RegionScore, src.HomeParams.RegionScore)
	}
}

func sharedName(a, b *tailcfg.DERPRegion) (string, bool) {
	for _, n := range a.Nodes {
		if slices.ContainsFunc(b.Nodes, func(o *tailcfg.DERPNode) bool { return o.Name == n.Name }) {
			return n.Name, true
		}
	}
	return "", false
}
