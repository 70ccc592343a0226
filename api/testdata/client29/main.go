// Command client29 calls a server with version 2.9 of Tailscale's Go client, which the Kubernetes operator uses. It is a module of
// its own because no other one can have two versions of that client. Arguments: the server's URL and an API key. It prints what does
// not work and exits with 1 then.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"

	"tailscale.com/client/tailscale/v2"
)

func main() {
	u, err := url.Parse(os.Args[1])
	if err != nil {
		panic(err)
	}
	c := &tailscale.Client{BaseURL: u, APIKey: os.Args[2]}
	ctx := context.Background()
	failed := false
	check := func(what string, err error, want string) {
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			fmt.Printf("%s: %v, want %q\n", what, err, want)
			failed = true
		}
	}
	good := `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`
	check("validate", c.PolicyFile().Validate(ctx, good), "")
	check("validate a fault", c.PolicyFile().Validate(ctx, `{"acls": 1}`), "acls")
	_, err = c.PolicyFile().Raw(ctx)
	check("get the policy", err, "")
	ds, err := c.Devices().ListWithAllFields(ctx)
	check("devices", err, "")
	if len(ds) == 0 {
		fmt.Println("there are no devices")
		os.Exit(1)
	}
	_, err = c.Devices().Get(ctx, ds[0].NodeID)
	check("a device", err, "")
	_, err = c.Devices().Get(ctx, "99")
	check("no device", err, "404")
	var req tailscale.CreateKeyRequest
	req.Capabilities.Devices.Create.Tags = []string{"tag:k8s"}
	k, err := c.Keys().CreateAuthKey(ctx, req)
	check("make a key", err, "")
	if err == nil {
		_, err = c.Keys().Get(ctx, k.ID)
		check("get a key", err, "")
		check("delete a key", c.Keys().Delete(ctx, k.ID), "")
	}
	check("name servers", c.DNS().SetNameservers(ctx, []string{"1.1.1.1"}), "")
	_, err = c.Users().List(ctx, nil, nil)
	check("users", err, "")
	_, err = c.TailnetSettings().Get(ctx)
	check("settings", err, "")
	svc := tailscale.VIPService{Name: "svc:ingress", Ports: []string{"tcp:443"}, Tags: []string{"tag:k8s"}, Comment: "by the operator",
		Annotations: map[string]string{"tailscale.com/owner-references": `{"ownerrefs":[{"operatorID":"1"}]}`}}
	_, err = c.VIPServices().Get(ctx, svc.Name)
	check("no service", err, "404")
	check("make a service", c.VIPServices().CreateOrUpdate(ctx, svc), "")
	made, err := c.VIPServices().Get(ctx, svc.Name)
	check("get a service", err, "")
	if err == nil {
		if len(made.Addrs) != 2 || made.Annotations["tailscale.com/owner-references"] != svc.Annotations["tailscale.com/owner-references"] || made.Ports[0] != "tcp:443" {
			fmt.Printf("the service is %+v\n", made)
			failed = true
		}
		made.Comment = "" // with its addresses sent back, as the operator does
		check("change a service", c.VIPServices().CreateOrUpdate(ctx, *made), "")
	}
	all, err := c.VIPServices().List(ctx)
	check("services", err, "")
	if len(all) != 1 || all[0].Comment != "" {
		fmt.Printf("the services are %+v\n", all)
		failed = true
	}
	check("delete a service", c.VIPServices().Delete(ctx, svc.Name), "")
	check("delete no service", c.VIPServices().Delete(ctx, svc.Name), "404")
	_, err = c.Contacts().Get(ctx)
	check("contacts", err, "")
	if failed {
		os.Exit(1)
	}
}
