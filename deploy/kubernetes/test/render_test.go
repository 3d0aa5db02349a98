package kubernetes

import (
	"fmt"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	v1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// decoder takes the kinds that the manifests have, with the fields that these kinds have, each once.
var decoder = func() *json.Serializer {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, networkingv1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}()

// objects are what an overlay renders to.
type objects []v1.Object

// render renders a folder as "kubectl apply -k" does.
func render(t *testing.T, folder string) objects {
	t.Helper()
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	must.Do(t, err)
	var all objects
	for _, r := range rendered.Resources() {
		text, err := r.AsYAML()
		must.Do(t, err)
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", r.CurId(), err, text)
		}
		all = append(all, object.(v1.Object))
	}
	return all
}

// of returns the objects of one kind.
func of[T v1.Object](all objects) []T {
	var found []T
	for _, o := range all {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// workload is what makes pods.
type workload struct {
	name      string
	namespace string
	selector  *v1.LabelSelector
	template  corev1.PodTemplateSpec
}

func (all objects) workloads() []workload {
	var found []workload
	for _, d := range of[*appsv1.DaemonSet](all) {
		found = append(found, workload{d.Name, d.Namespace, d.Spec.Selector, d.Spec.Template})
	}
	for _, d := range of[*appsv1.Deployment](all) {
		found = append(found, workload{d.Name, d.Namespace, d.Spec.Selector, d.Spec.Template})
	}
	return found
}

// helped returns the one workload that has the daemon, and its container.
func (all objects) helped(t *testing.T) (workload, corev1.Container) {
	t.Helper()
	for _, w := range all.workloads() {
		for _, c := range w.containers() {
			if c.Name == "nfq-ftphelper" {
				return w, c
			}
		}
	}
	t.Fatal("no pod has the daemon")
	panic("unreachable")
}

// containers are those that run for as long as the pod does.
func (w workload) containers() []corev1.Container {
	var all []corev1.Container
	for _, c := range w.template.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return append(all, w.template.Spec.Containers...)
}

// configMap returns the ConfigMap of a pod's volume that is mounted at a path.
func (all objects) configMap(w workload, c corev1.Container, path string) (*corev1.ConfigMap, error) {
	for _, mount := range c.VolumeMounts {
		if mount.MountPath != path {
			continue
		}
		for _, volume := range w.template.Spec.Volumes {
			if volume.Name != mount.Name || volume.ConfigMap == nil {
				continue
			}
			for _, m := range of[*corev1.ConfigMap](all) {
				if m.Name == volume.ConfigMap.Name && m.Namespace == w.namespace {
					return m, nil
				}
			}
			return nil, fmt.Errorf("there is no ConfigMap %s/%s", w.namespace, volume.ConfigMap.Name)
		}
	}
	return nil, fmt.Errorf("no ConfigMap is mounted at %s", path)
}
