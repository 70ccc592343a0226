package api

import (
	"context"
	"net/http"
	"runtime"
	"runtime/debug"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Health is the answer of a server that is well; one that is not answers with a Problem.
type Health struct {
	DatabaseConnectivity bool `json:"databaseConnectivity"`
}

// Version says which program this is. Fields that the build did not record are empty.
type Version struct {
	Version   string    `json:"version"`
	Commit    string    `json:"commit"`
	Dirty     bool      `json:"dirty"`     // built from a tree that differed from Commit
	BuildTime string    `json:"buildTime"` // of the commit, RFC 3339
	Go        GoVersion `json:"go"`
}

// GoVersion says what Version was built with and for.
type GoVersion struct {
	Version string `json:"version"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// BuildVersion is the Version of this program; number is its own part.
func BuildVersion(number string) Version {
	v := Version{Version: number, Go: GoVersion{Version: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, kv := range info.Settings {
		switch kv.Key {
		case "vcs.revision":
			v.Commit = kv.Value
		case "vcs.time":
			v.BuildTime = kv.Value
		case "vcs.modified":
			v.Dirty = kv.Value == "true"
		}
	}
	return v
}

func (s *server) healthRoutes() []route {
	return []route{
		{"/health", ops{http.MethodGet: {auth.ScopeNone, s.health}}},
		{"/version", ops{http.MethodGet: {auth.ScopeNone, s.version}}},
	}
}

func (s *server) health(r *http.Request) (any, error) {
	if err := s.Health(r.Context()); err != nil {
		return nil, &tailnet.Error{Code: tailnet.Unavailable, Message: "the database does not answer", Cause: err}
	}
	return Health{DatabaseConnectivity: true}, nil
}

// Health is what a server that is well says of itself; one that is not gives an error.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.do(ctx, http.MethodGet, c.path("health"), nil, &h)
	return h, err
}

func (s *server) version(*http.Request) (any, error) { return BuildVersion(s.Options.Version), nil }

// ServerVersion is the version of the server, which may differ from the caller's.
func (c *Client) ServerVersion(ctx context.Context) (Version, error) {
	var v Version
	err := c.do(ctx, http.MethodGet, c.path("version"), nil, &v)
	return v, err
}
