// Command onboard prepares a site for somebody: a namespace, a rule of the policy that approves the site's network as soon as a machine
// of theirs offers it, and a pre-auth key for that machine. It is an example of a program that uses nothing but the API.
//
//	export SKEIN_SERVER=https://skein.example.com SKEIN_API_KEY=tskey-api-…
//	go run ./examples/onboard -name junyao -network 192.168.199.0/24
//
// It prints the command to type on the machine. Run again for the same name it changes nothing but makes another key. The API key needs
// the scopes users, auth_keys and policy_file, and devices:core if it belongs to somebody else.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/tailnet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "onboard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("onboard", flag.ContinueOnError)
	server := f.String("server", os.Getenv("SKEIN_SERVER"), "URL of the server")
	name := f.String("name", "", "name of the namespace")
	network := f.String("network", "", "network behind the machine, such as 192.168.199.0/24")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *name == "" || *network == "" || f.NArg() > 0 {
		return errors.New("-name and -network are needed")
	}
	if _, err := tailnet.ParseRoute(*network); err != nil {
		return err
	}
	c, err := api.NewClient(*server, os.Getenv("SKEIN_API_KEY"))
	if err != nil {
		return err
	}

	if _, err := c.CreateUser(ctx, api.CreateUserRequest{Name: *name}); err != nil && tailnet.CodeOf(err) != tailnet.Conflict {
		return fmt.Errorf("making the namespace: %w", err)
	}
	if err := approve(ctx, c, *name, *network); err != nil {
		return fmt.Errorf("changing the policy: %w", err)
	}
	key, err := c.CreatePreAuthKey(ctx, api.CreatePreAuthKeyRequest{User: api.Ref(*name), Preapproved: true})
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	_, err = fmt.Fprintf(out, "tailscale up --login-server %s --auth-key %s --advertise-routes %s\n", *server, key.Key, *network)
	return err
}

// approve adds the rule to the policy unless it is there. Comments and layout stay, and a change that somebody else makes meanwhile is
// not lost: the server refuses a policy that replaces another version than the one that was read.
func approve(ctx context.Context, c *api.Client, name, network string) error {
	p, err := c.Policy(ctx)
	if err != nil {
		return err
	}
	text := p.Text
	if strings.TrimSpace(text) == "" { // nobody has set a policy: this one keeps everybody reaching everybody
		text = `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`
	}
	v, err := hujson.Parse([]byte(text))
	if err != nil {
		return err
	}
	who := name
	if !strings.Contains(who, "@") {
		who += "@"
	}
	std := v.Clone()
	std.Standardize()
	var now struct {
		AutoApprovers *struct {
			Routes map[string][]string `json:"routes"`
		} `json:"autoApprovers"`
	}
	if err := json.Unmarshal(std.Pack(), &now); err != nil {
		return err
	}
	type op struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	var patch []op
	at := "/autoApprovers/routes/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(network)
	switch {
	case now.AutoApprovers == nil:
		patch = append(patch, op{"add", "/autoApprovers", map[string]any{"routes": map[string][]string{network: {who}}}})
	case now.AutoApprovers.Routes == nil:
		patch = append(patch, op{"add", "/autoApprovers/routes", map[string][]string{network: {who}}})
	case now.AutoApprovers.Routes[network] == nil:
		patch = append(patch, op{"add", at, []string{who}})
	default:
		for _, w := range now.AutoApprovers.Routes[network] {
			if w == who {
				return nil
			}
		}
		patch = append(patch, op{"add", at + "/-", who})
	}
	b, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if err := v.Patch(b); err != nil {
		return err
	}
	v.Format()
	_, err = c.SetPolicy(ctx, api.SetPolicyRequest{Text: string(v.Pack()), IfMatch: api.Ref(p.Version.String()), Comment: "onboarding of " + name})
	return err
}
