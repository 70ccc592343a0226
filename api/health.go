package api

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Health is the answer of a server that is well; one that is not answers with a Problem.
type Health struct {
	DatabaseConnectivity bool          `json:"databaseConnectivity"`
	Checks               []HealthCheck `json:"checks"`
}

// HealthCheck is one thing that must be well.
type HealthCheck struct {
	Name  string `json:"name"`
	Error string `json:"error"` // empty: it is well
}

// Unwell is nil if all checks are well, or else an Unavailable error that names those that are not.
func Unwell(checks []HealthCheck) error {
	var names, causes []string
	for _, c := range checks {
		if c.Error != "" {
			names, causes = append(names, c.Name), append(causes, c.Name+": "+c.Error)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &tailnet.Error{Code: tailnet.Unavailable, Message: "the server is not well: " + strings.Join(names, ", "), Cause: errors.New(strings.Join(causes, "; "))}
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

func (s *server) healthOperations() []operation {
	return []operation{
		get("/health", auth.ScopeNone, "whether the server is well", s.health),
		get("/version", auth.ScopeNone, "which version it is", s.version),
	}
}

// health tells what is wrong to those only who may look at nodes: it may name paths and addresses.
func (s *server) health(r *http.Request, _ *Empty) (*Health, error) {
	checks := s.Health(r.Context())
	if err := Unwell(checks); err != nil {
		var te *tailnet.Error
		if errors.As(err, &te) && auth.PrincipalOf(r.Context()).Allow(auth.Read(auth.ScopeDevices)) == nil {
			te.Message = "the server is not well: " + te.Cause.Error()
		}
		return nil, err
	}
	return &Health{DatabaseConnectivity: true, Checks: list(checks)}, nil
}

// Health is what a server that is well says of itself; one that is not gives an error.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.do(ctx, http.MethodGet, c.path("health"), nil, &h)
	return h, err
}

func (s *server) version(*http.Request, *Empty) (*Version, error) {
	v := BuildVersion(s.Options.Version)
	return &v, nil
}

// ServerVersion is the version of the server, which may differ from the caller's.
func (c *Client) ServerVersion(ctx context.Context) (Version, error) {
	var v Version
	err := c.do(ctx, http.MethodGet, c.path("version"), nil, &v)
	return v, err
}
