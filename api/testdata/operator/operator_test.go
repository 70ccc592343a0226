// What is tested here is the Kubernetes operator of Tailscale, release 1.102.5, against a server whose address is in the environment:
// its reconcilers and its client with OAuth credentials are real, the Kubernetes API is the fake one that the operator's own tests use.
// The file is put beside a copy of the operator's sources, because they are a program and cannot be imported.
package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	tailscale "tailscale.com/client/tailscale/v2"
	"tailscale.com/ipn"
	tsoperator "tailscale.com/k8s-operator"
	tsapi "tailscale.com/k8s-operator/apis/v1alpha1"
	"tailscale.com/k8s-operator/reconciler/tailnet"
	"tailscale.com/k8s-operator/tsclient"
	"tailscale.com/kube/kubetypes"
	"tailscale.com/tstime"
)

const namespace = "tailscale"

func quiet() *zap.SugaredLogger { return zap.NewNop().Sugar() }

// theirs is the operator's client, made as the operator makes it: from two files and the login server.
func theirs(t *testing.T) tsclient.Client {
	dir := t.TempDir()
	for name, env := range map[string]string{"id": "SKEIN_CLIENT_ID", "secret": "SKEIN_CLIENT_SECRET"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(os.Getenv(env)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := newTSClient(quiet(), "", filepath.Join(dir, "id"), filepath.Join(dir, "secret"), os.Getenv("SKEIN_URL"))
	if err != nil {
		t.Fatal(err)
	}
	return tsclient.Wrap(c)
}

// reconciled lets a reconciler work several times: each takes a step, and the last ones change nothing.
func reconciled(t *testing.T, r reconcile.Reconciler, name types.NamespacedName, times int) {
	t.Helper()
	for range times {
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: name}); err != nil {
			t.Fatal(err)
		}
	}
}

// A Service of the class tailscale: the operator makes an auth key for its proxy, and deletes the proxy's device with the Service.
func TestOperatorService(t *testing.T) {
	ctx, kube := t.Context(), fake.NewFakeClient()
	r := &ServiceReconciler{
		Client: kube, logger: quiet(), clock: tstime.DefaultClock{}, recorder: record.NewFakeRecorder(100), tsNamespace: namespace,
		ssr: &tailscaleSTSReconciler{
			Client: kube, clients: tsclient.NewProvider(theirs(t)), defaultTags: []string{"tag:k8s"}, operatorNamespace: namespace, proxyImage: "tailscale/tailscale",
		},
	}
	class := "tailscale"
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "1234"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.20.30.40", Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class},
	}
	if err := kube.Create(ctx, svc); err != nil {
		t.Fatal(err)
	}
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	reconciled(t, r, name, 1) // the fake of Kubernetes does not keep secrets as the real one does, so that a second one would not see the key

	var secrets corev1.SecretList
	if err := kube.List(ctx, &secrets, client.InNamespace(namespace)); err != nil || len(secrets.Items) != 1 {
		t.Fatalf("%d secrets, %v", len(secrets.Items), err)
	}
	secret, found := secrets.Items[0], false
	for file, text := range secret.StringData {
		var c ipn.ConfigVAlpha
		if err := json.Unmarshal([]byte(text), &c); err != nil || c.AuthKey == nil {
			t.Fatalf("%s: %v\n%s", file, err, text)
		}
		if found = strings.HasPrefix(*c.AuthKey, "tskey-auth-"); !found || c.ServerURL == nil || *c.ServerURL != os.Getenv("SKEIN_URL") {
			t.Errorf("key %q, server %v", *c.AuthKey, c.ServerURL)
		}
	}
	if !found {
		t.Fatalf("no auth key in %+v", secret.StringData)
	}

	// The proxy is up: its device is one that the server has.
	id := os.Getenv("SKEIN_DEVICE")
	secret.Data = map[string][]byte{kubetypes.KeyDeviceID: []byte(id), kubetypes.KeyDeviceFQDN: []byte("web.skein.internal."), kubetypes.KeyDeviceIPs: []byte(`["100.64.0.9"]`)}
	if err := kube.Update(ctx, &secret); err != nil {
		t.Fatal(err)
	}
	reconciled(t, r, name, 4)
	devices, err := theirs(t).Devices().List(ctx)
	has := func(d tailscale.Device) bool { return d.NodeID == id }
	if err != nil || !slices.ContainsFunc(devices, has) {
		t.Fatalf("the device is not there: %v", err)
	}
	if err := kube.Get(ctx, name, svc); err != nil {
		t.Fatal(err)
	}
	if err := kube.Delete(ctx, svc); err != nil {
		t.Fatal(err)
	}
	reconciled(t, r, name, 4)
	if devices, err = theirs(t).Devices().List(ctx); err != nil || slices.ContainsFunc(devices, has) {
		t.Errorf("the device is still there: %v", err)
	}
	if err := kube.Get(ctx, name, svc); err == nil {
		t.Error("the Service is still there")
	}
}

// The operator looks at what it can do before it calls a tailnet ready.
func TestOperatorTailnet(t *testing.T) {
	ctx := t.Context()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "creds", Namespace: namespace},
		Data:       map[string][]byte{"client_id": []byte(os.Getenv("SKEIN_CLIENT_ID")), "client_secret": []byte(os.Getenv("SKEIN_CLIENT_SECRET"))},
	}
	tn := &tsapi.Tailnet{
		ObjectMeta: metav1.ObjectMeta{Name: "ours"},
		Spec:       tsapi.TailnetSpec{LoginURL: os.Getenv("SKEIN_URL"), Credentials: tsapi.TailnetCredentials{SecretName: "creds"}},
	}
	kube := fake.NewClientBuilder().WithScheme(tsapi.GlobalScheme).WithObjects(secret, tn).WithStatusSubresource(tn).Build()
	r := tailnet.NewReconciler(tailnet.ReconcilerOptions{
		Client: kube, TailscaleNamespace: namespace, Clock: tstime.DefaultClock{}, Logger: quiet(), Registry: tsclient.NewProvider(theirs(t)),
	})
	reconciled(t, r, types.NamespacedName{Name: "ours"}, 2)
	if err := kube.Get(ctx, types.NamespacedName{Name: "ours"}, tn); err != nil {
		t.Fatal(err)
	}
	if len(tn.Status.Conditions) != 1 || tn.Status.Conditions[0].Status != metav1.ConditionTrue {
		t.Errorf("%+v", tn.Status.Conditions)
	}
}

// A Service on a ProxyGroup is a service of the tailnet with addresses of its own.
func TestOperatorProxyGroup(t *testing.T) {
	ctx, c := t.Context(), theirs(t)
	pg := &tsapi.ProxyGroup{ObjectMeta: metav1.ObjectMeta{Name: "pg", Generation: 1}, Spec: tsapi.ProxyGroupSpec{Type: tsapi.ProxyGroupTypeIngress}}
	kube := fake.NewClientBuilder().WithScheme(tsapi.GlobalScheme).WithStatusSubresource(pg, &corev1.Service{}).
		WithIndex(new(corev1.Service), indexIngressProxyGroup, indexPGIngresses).WithObjects(pg,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "pg-ingress-config", Namespace: namespace}, BinaryData: map[string][]byte{"serve-config.json": []byte(`{"Services":{}}`)}},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: pgConfigSecretName("pg", 0), Namespace: namespace, Labels: pgSecretLabels("pg", kubetypes.LabelSecretTypeConfig)},
			Data:       map[string][]byte{tsoperator.TailscaledConfigFileName(pgMinCapabilityVersion): []byte(`{"Version":""}`)},
		},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pg-0", Namespace: namespace}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pg-0", Namespace: namespace}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "4.3.2.1"}}}},
	).Build()
	pg.Status.Conditions = []metav1.Condition{{Type: string(tsapi.ProxyGroupAvailable), Status: metav1.ConditionTrue, ObservedGeneration: 1, LastTransitionTime: metav1.Now()}}
	if err := kube.Status().Update(ctx, pg); err != nil {
		t.Fatal(err)
	}
	r := &HAServiceReconciler{
		Client: kube, clients: tsclient.NewProvider(c), clock: tstime.DefaultClock{}, defaultTags: []string{"tag:k8s"}, tsNamespace: namespace,
		logger: quiet(), recorder: record.NewFakeRecorder(100), operatorID: "nOperator",
	}
	class := "tailscale"
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default", UID: "99", Annotations: map[string]string{"tailscale.com/proxy-group": "pg"}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, ClusterIP: "10.20.30.41", ClusterIPs: []string{"10.20.30.41"},
		},
	}
	if err := kube.Create(ctx, svc); err != nil {
		t.Fatal(err)
	}
	name := types.NamespacedName{Namespace: "default", Name: "db"}
	reconciled(t, r, name, 4)
	got, err := c.VIPServices().Get(ctx, "svc:default-db")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Tags, []string{"tag:k8s"}) || len(got.Addrs) != 2 || !slices.Equal(got.Ports, []string{"do-not-validate"}) || !strings.Contains(got.Annotations[ownerAnnotation], "nOperator") {
		t.Errorf("%+v", got)
	}
	if err := kube.Get(ctx, name, svc); err != nil {
		t.Fatal(err)
	}
	if err := kube.Delete(ctx, svc); err != nil {
		t.Fatal(err)
	}
	reconciled(t, r, name, 4)
	if all, err := c.VIPServices().List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}
