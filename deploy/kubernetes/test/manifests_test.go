package kubernetes

import (
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	v1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// image is what "make image" builds.
const image = "localhost/nfq-ftphelper:devel"

var overlays = []string{"node", "node-monitored", "sidecar"}

func overlay(name string) string { return filepath.Join("..", "overlays", name) }

func TestManifests(t *testing.T) {
	t.Parallel()
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := render(t, overlay(name))
			checkNamespaces(t, all)
			for _, w := range all.workloads() {
				if !matches(t, w.selector, w.template.Labels) {
					t.Errorf("%s does not select its own pods, which have %v", w.name, w.template.Labels)
				}
				for _, c := range w.containers() {
					checkMounts(t, w, c)
				}
			}
			w, c := all.helped(t)
			if c.Image != image {
				t.Errorf("the image is %q, and \"make image\" builds %q", c.Image, image)
			}
			checkPrivileges(t, w, c)
			metrics := checkConfiguration(t, all, w, c)
			checkProbes(t, w, c, metrics)
			checkServices(t, all)
			checkMonitors(t, all)
			checkPolicies(t, all)
		})
	}
}

// checkNamespaces wants all objects in a namespace that is there, and allows what the daemon needs.
func checkNamespaces(t *testing.T, all objects) {
	t.Helper()
	spaces := of[*corev1.Namespace](all)
	if len(spaces) != 1 {
		t.Fatalf("%d namespaces, want 1", len(spaces))
	}
	if level := spaces[0].Labels["pod-security.kubernetes.io/enforce"]; level != "privileged" {
		t.Errorf("pods with NET_ADMIN are not allowed at the level %q", level)
	}
	for _, o := range all {
		if _, is := o.(*corev1.Namespace); !is && o.GetNamespace() != spaces[0].Name {
			t.Errorf("%T %s is in the namespace %q, not %q", o, o.GetName(), o.GetNamespace(), spaces[0].Name)
		}
	}
}

// TestImage wants "make image" to build what the manifests name.
func TestImage(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	must.Do(t, err)
	found := regexp.MustCompile(`(?m)^IMAGE\s*\?=\s*(\S+)$`).FindSubmatch(makefile)
	if found == nil || string(found[1]) != image {
		t.Errorf("the Makefile's image is %q, want %q", found, image)
	}
}

func checkMounts(t *testing.T, w workload, c corev1.Container) {
	t.Helper()
	for _, mount := range c.VolumeMounts {
		if !slices.ContainsFunc(w.template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name }) {
			t.Errorf("%s mounts %q, which is no volume of its pod", c.Name, mount.Name)
		}
	}
}

// checkPrivileges wants the daemon to have what it needs, and nothing more.
func checkPrivileges(t *testing.T, w workload, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	seccomp := s.SeccompProfile
	if seccomp == nil && w.template.Spec.SecurityContext != nil {
		seccomp = w.template.Spec.SecurityContext.SeccompProfile
	}
	switch {
	case seccomp == nil || seccomp.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Errorf("the seccomp profile is %v", seccomp)
	case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		t.Error("privileges may grow")
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		t.Error("the root file system can be written")
	case s.RunAsUser == nil || *s.RunAsUser != 0:
		t.Error("the user is not root, to whom alone Kubernetes gives capabilities")
	case s.Privileged != nil && *s.Privileged,
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}),
		!slices.Equal(s.Capabilities.Add, []corev1.Capability{"NET_ADMIN"}):
		t.Errorf("the capabilities are %+v, want NET_ADMIN only", s.Capabilities)
	}
	if len(c.Resources.Requests) == 0 || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("no resources are asked for, or memory has no limit: %+v", c.Resources)
	}
}

// checkConfiguration has the daemon check its file, and returns the address at which it serves
// metrics and probes.
func checkConfiguration(t *testing.T, all objects, w workload, c corev1.Container) (metrics string) {
	t.Helper()
	i := slices.Index(c.Args, "--config")
	if i < 0 || i+1 == len(c.Args) {
		t.Fatalf("no file is named in %q", c.Args)
	}
	file := c.Args[i+1]
	m, err := all.configMap(w, c, path.Dir(file))
	must.Do(t, err)
	text, ok := m.Data[path.Base(file)]
	if !ok {
		t.Fatalf("%s has no %s", m.Name, path.Base(file))
	}
	copied := filepath.Join(t.TempDir(), path.Base(file))
	must.Do(t, os.WriteFile(copied, []byte(text), 0o600))
	if output, err := exec.Command(daemon(t), "config", "check", copied).CombinedOutput(); err != nil {
		t.Errorf("the daemon does not take its file: %v: %s", err, output)
	}
	var settings struct{ Metrics string }
	must.Do(t, yaml.Unmarshal([]byte(text), &settings))
	for _, arg := range c.Args { // a flag counts more
		if value, is := strings.CutPrefix(arg, "--metrics="); is {
			settings.Metrics = value
		}
	}
	return settings.Metrics
}

// checkProbes wants each probe to go where the daemon answers it.
func checkProbes(t *testing.T, w workload, c corev1.Container, metrics string) {
	t.Helper()
	host, port, err := net.SplitHostPort(metrics)
	if err != nil {
		t.Fatalf("metrics at %q: %v", metrics, err)
	}
	switch host {
	case "$(NODE_ADDRESS)": // the pod's, on the host's network
		if !w.template.Spec.HostNetwork {
			t.Error("the node's address is not the pod's")
		}
		if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.Name == "NODE_ADDRESS" && e.ValueFrom.FieldRef.FieldPath == "status.hostIP"
		}) {
			t.Error("nothing says what NODE_ADDRESS is")
		}
		host = ""
	case "127.0.0.1": // the kubelet's own, only on the host's network
		if !w.template.Spec.HostNetwork {
			t.Error("the kubelet can't reach the pod's loopback")
		}
	case "0.0.0.0": // the pod's, among others
		host = ""
	default:
		t.Errorf("nothing is known of the address %q", host)
	}
	for _, p := range []struct {
		name, path string
		probe      *corev1.Probe
		optional   bool
	}{
		{"liveness", "/livez", c.LivenessProbe, false},
		{"readiness", "/readyz", c.ReadinessProbe, false},
		{"startup", "/readyz", c.StartupProbe, true},
	} {
		if p.probe == nil {
			if !p.optional {
				t.Errorf("there is no %s probe", p.name)
			}
			continue
		}
		get := p.probe.HTTPGet
		if get.Path != p.path || get.Host != host {
			t.Errorf("the %s probe gets %q from %q, want %q from %q", p.name, get.Path, get.Host, p.path, host)
		}
		if n := portOf(c, get.Port); strconv.Itoa(int(n)) != port {
			t.Errorf("the %s probe goes to port %s, which is %d, and the daemon serves %s", p.name, get.Port.String(), n, port)
		}
	}
}

// portOf returns the port of a container that has this name or number; 0 if there is none.
func portOf(c corev1.Container, port intstr.IntOrString) int32 {
	for _, p := range c.Ports {
		if port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
			return p.ContainerPort
		}
	}
	return 0
}

// hasPort reports whether one of the pod's containers has the port.
func (w workload) hasPort(port intstr.IntOrString) bool {
	return slices.ContainsFunc(w.containers(), func(c corev1.Container) bool { return portOf(c, port) != 0 })
}

// checkServices wants each Service to have pods that have its ports.
func checkServices(t *testing.T, all objects) {
	t.Helper()
	for _, s := range of[*corev1.Service](all) {
		pods := all.selected(t, &v1.LabelSelector{MatchLabels: s.Spec.Selector})
		if len(pods) == 0 {
			t.Errorf("the Service %s has no pods", s.Name)
		}
		for _, w := range pods {
			for _, p := range s.Spec.Ports {
				target := p.TargetPort
				if target == (intstr.IntOrString{}) {
					target = intstr.FromInt32(p.Port)
				}
				if !w.hasPort(target) {
					t.Errorf("the Service %s has the port %s, and %s does not", s.Name, target.String(), w.name)
				}
			}
		}
	}
}

// checkMonitors wants each ServiceMonitor to have a Service that has its ports.
func checkMonitors(t *testing.T, all objects) {
	t.Helper()
	for _, m := range of[*monitoringv1.ServiceMonitor](all) {
		found := 0
		for _, s := range of[*corev1.Service](all) {
			if !matches(t, &m.Spec.Selector, s.Labels) {
				continue
			}
			found++
			for _, e := range m.Spec.Endpoints {
				if !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == e.Port }) {
					t.Errorf("the ServiceMonitor wants the port %q, which the Service %s has not", e.Port, s.Name)
				}
			}
		}
		if found == 0 {
			t.Errorf("the ServiceMonitor %s selects no Service", m.Name)
		}
	}
}

// checkPolicies wants what a NetworkPolicy lets in to be ports of the pods that it selects, and all
// that clients reach to be let in.
func checkPolicies(t *testing.T, all objects) {
	t.Helper()
	for _, n := range of[*networkingv1.NetworkPolicy](all) {
		pods := all.selected(t, &n.Spec.PodSelector)
		if len(pods) == 0 {
			t.Errorf("the NetworkPolicy %s selects no pods", n.Name)
		}
		open := map[int32]bool{} // to all
		for _, rule := range n.Spec.Ingress {
			for _, p := range rule.Ports {
				last := p.Port.IntVal
				if p.EndPort != nil {
					last = *p.EndPort
				}
				for port := p.Port.IntVal; port <= last; port++ {
					open[port] = open[port] || len(rule.From) == 0
					for _, w := range pods {
						if !w.hasPort(intstr.FromInt32(port)) {
							t.Errorf("the NetworkPolicy %s lets in port %d, which %s has not", n.Name, port, w.name)
						}
					}
				}
			}
		}
		for _, s := range of[*corev1.Service](all) {
			for _, p := range s.Spec.Ports {
				if !open[p.Port] {
					t.Errorf("the NetworkPolicy %s lets nobody to port %d of the Service %s", n.Name, p.Port, s.Name)
				}
			}
		}
		if allowed, known := open[9921]; allowed || !known {
			t.Errorf("the NetworkPolicy %s lets in everybody to the metrics, or nobody", n.Name)
		}
	}
}

// selected are the workloads whose pods have these labels.
func (all objects) selected(t *testing.T, selector *v1.LabelSelector) []workload {
	t.Helper()
	return slices.DeleteFunc(all.workloads(), func(w workload) bool { return !matches(t, selector, w.template.Labels) })
}

func matches(t *testing.T, selector *v1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := v1.LabelSelectorAsSelector(selector)
	must.Do(t, err)
	return s.Matches(labels.Set(set))
}
