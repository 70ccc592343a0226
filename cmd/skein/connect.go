package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/tailnet"
)

// socketName is the socket's name in the data folder.
const socketName = "skein.sock"

// What stands in for flags that are not given.
const (
	envSocket     = "SKEIN_SOCKET"
	envServer     = "SKEIN_SERVER"
	envAPIKey     = "SKEIN_API_KEY"
	envAPIKeyFile = "SKEIN_API_KEY_FILE"
)

// dialTimeout is how long a server on this machine may take to accept.
const dialTimeout = 5 * time.Second

// newSocketHelp is a page of the help: a command that does nothing.
func newSocketHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "socket",
		Short: "How commands find the server",
		Long: `Commands find the server's unix socket by the first of these that is given:

  --socket PATH
  SKEIN_SOCKET in the environment
  --data-dir DIR             DIR/skein.sock
  unix_socket, or else skein.sock in data_dir, of the configuration (the file given by -c or
                             in its usual place, and the environment)

and, if none is given, by the first of these that a server answers at:

  ./skein-data/skein.sock
  /var/lib/skein/skein.sock

A server on another machine is found by its URL, given by --server URL or SKEIN_SERVER in the environment; --socket and --data-dir
contradict it. That needs an API key ("skein apikeys create" on the server makes one), given by the first of

  --api-key KEY
  --api-key-file FILE
  SKEIN_API_KEY in the environment
  SKEIN_API_KEY_FILE in the environment, the name of a file

A key sent to an http:// URL can be read on the way: use https:// unless the way is safe. SSL_CERT_FILE names further certificates
to trust.`,
	}
}

// candidate is a place where the server's socket may be.
type candidate struct {
	path string
	from string // who said so
}

// sockets are the places to look at. The first value that was given on purpose is the only one.
func (c *cli) sockets() ([]candidate, error) {
	switch {
	case c.socket != "":
		return []candidate{{c.socket, "--socket"}}, nil
	case os.Getenv(envSocket) != "":
		return []candidate{{os.Getenv(envSocket), envSocket}}, nil
	case c.dataDir != "":
		return []candidate{{filepath.Join(c.dataDir, socketName), "--data-dir"}}, nil
	}
	fromConfig, err := c.configSocket()
	if err != nil {
		return nil, err
	}
	if fromConfig != nil {
		return []candidate{*fromConfig}, nil
	}
	var out []candidate
	for _, dir := range []string{config.LocalDataDir, config.SystemDataDir} {
		out = append(out, candidate{filepath.Join(dir, socketName), "usual place"})
	}
	return out, nil
}

// configSocket is what the configuration says about the socket, nil if that is nothing. A faulty file is an error only if it
// was asked for: it must not keep anybody from the server that runs.
func (c *cli) configSocket() (*candidate, error) {
	keys := []string{"unix_socket", "data_dir"}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { // set to nothing says nothing
		return slices.ContainsFunc(keys, func(k string) bool { return e == config.EnvName(k)+"=" })
	})
	cfg, err := config.Load(config.Options{File: c.config, Env: env})
	if err != nil {
		if c.config == "" {
			return nil, nil
		}
		return nil, err
	}
	for _, key := range keys {
		if from := cfg.Origin(key); from != "default" {
			return &candidate{cfg.UnixSocket, key + " in " + from}, nil
		}
	}
	return nil, nil
}

// maxKeyFile is how many bytes of a file with an API key are read.
const maxKeyFile = 4096

// remoteKey is the API key for a server elsewhere.
func (c *cli) remoteKey() (string, error) {
	file := c.keyFile
	switch {
	case c.apiKey != "":
		return c.apiKey, nil
	case file != "":
	case os.Getenv(envAPIKey) != "":
		return os.Getenv(envAPIKey), nil
	default:
		file = os.Getenv(envAPIKeyFile)
	}
	if file == "" {
		return "", usagef("a server elsewhere needs an API key: --api-key-file, or %s in the environment", envAPIKey)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("the API key cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return "", fmt.Errorf("the API key cannot be read: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" {
		return "", fmt.Errorf("the file %s holds no API key", file)
	}
	return key, nil
}

// remoteClient is a client of the server at url.
func (c *cli) remoteClient(server string) (*api.Client, error) {
	key, err := c.remoteKey()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(server)
	if err == nil && u.Scheme == "http" {
		if a, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !a.IsLoopback()) {
			fmt.Fprintf(c.errOut, "Warning: the API key goes to %s unencrypted.\n", server)
		}
	}
	return api.NewClient(server, key)
}

// client is a client of the server that is named by its URL, or else of the one that answers first. The error names every place that
// was tried.
func (c *cli) client() (*api.Client, error) {
	if c.server != "" && (c.socket != "" || c.dataDir != "") {
		return nil, usagef("--server names a server elsewhere, --socket and --data-dir one on this machine: give one of them")
	}
	if c.server != "" {
		return c.remoteClient(c.server)
	}
	if server := os.Getenv(envServer); server != "" && c.socket == "" && c.dataDir == "" {
		return c.remoteClient(server)
	}
	places, err := c.sockets()
	if err != nil {
		return nil, err
	}
	var tried []string
	seen := map[string]bool{}
	for _, p := range places {
		if seen[p.path] {
			continue
		}
		seen[p.path] = true
		conn, err := net.DialTimeout("unix", p.path, dialTimeout)
		if err == nil {
			conn.Close()
			return api.NewUnixClient(p.path), nil
		}
		tried = append(tried, fmt.Sprintf("  %s (%s): %s", p.path, p.from, whyNot(err)))
	}
	return nil, tailnet.Errorf(tailnet.Unavailable, "no server answers at\n%s\nStart one with `skein serve`, or say where it is with --data-dir or --socket",
		strings.Join(tried, "\n"))
}

// whyNot says in a few words why nobody answers at a socket.
func whyNot(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the server that made it is gone"
	case errors.Is(err, fs.ErrPermission):
		return "you may not open it; try as root, or join the group that owns it"
	case errors.Is(err, syscall.EINVAL):
		return "the path is too long for a socket"
	case errors.Is(err, syscall.ENOTSOCK):
		return "it is no socket"
	}
	return err.Error()
}
