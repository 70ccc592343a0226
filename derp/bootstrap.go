package derp

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Bootstrap answers /bootstrap-dns: a client that cannot resolve the server's name asks a relay it still knows by address
// (tailscale.com/net/dnsfallback). Only the names given are answered, so this is no resolver for strangers.
type Bootstrap struct {
	// Names are the host names to answer for, such as the server URL's. Case does not matter.
	Names []string

	// Lookup resolves one of Names; net.DefaultResolver.LookupNetIP with network "ip" fits. Results are kept for a minute.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)

	mu     sync.Mutex
	cached map[string]bootstrapAnswer
}

type bootstrapAnswer struct {
	addrs []netip.Addr
	until time.Time
}

const (
	bootstrapKeep    = time.Minute
	bootstrapTimeout = 3 * time.Second // the client gives up after this long
)

// ServeHTTP answers {"name":["address",…]} for the name in the query parameter q, or for all names when there is no q. Unknown
// names give {}, and so does a nil Bootstrap.
func (b *Bootstrap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := map[string][]netip.Addr{}
	if b != nil {
		q := strings.TrimSuffix(strings.ToLower(r.URL.Query().Get("q")), ".")
		for _, name := range b.Names {
			if name = strings.ToLower(name); q == "" || q == name {
				if addrs := b.resolve(name); len(addrs) > 0 {
					out[name] = addrs
				}
			}
		}
	}
	writeJSON(w, out)
}

// resolve looks one name up, holding the lock: at most one look-up runs at a time, whatever strangers send. A look-up that fails
// is remembered too, with the last good answer; it does not end with the request, so a caller that hangs up spoils nothing.
func (b *Bootstrap) resolve(name string) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	old, ok := b.cached[name]
	if ok && now.Before(old.until) || b.Lookup == nil {
		return old.addrs
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootstrapTimeout)
	defer cancel()
	addrs, err := b.Lookup(ctx, name)
	if err != nil {
		addrs = old.addrs
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	if b.cached == nil {
		b.cached = map[string]bootstrapAnswer{}
	}
	b.cached[name] = bootstrapAnswer{addrs, now.Add(bootstrapKeep)}
	return addrs
}
