// Command manifest-types checks rendered manifests against the Go types and the webhooks' own validation of Kubernetes and Knative.
//
// It reads YAML from standard input, and prints one line for each fault. The exit code is 1 when there is a fault.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	ingressv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

// Knative's objects validate themselves, as their webhooks do.
type validated interface {
	SetDefaults(context.Context)
	Validate(context.Context) *apis.FieldError
}

var kinds = map[string]func() any{
	"v1/ConfigMap":                                     func() any { return &corev1.ConfigMap{} },
	"v1/Namespace":                                     func() any { return &corev1.Namespace{} },
	"v1/Service":                                       func() any { return &corev1.Service{} },
	"v1/ServiceAccount":                                func() any { return &corev1.ServiceAccount{} },
	"apps/v1/StatefulSet":                              func() any { return &appsv1.StatefulSet{} },
	"batch/v1/Job":                                     func() any { return &batchv1.Job{} },
	"networking.k8s.io/v1/NetworkPolicy":               func() any { return &networkingv1.NetworkPolicy{} },
	"policy/v1/PodDisruptionBudget":                    func() any { return &policyv1.PodDisruptionBudget{} },
	"serving.knative.dev/v1/Service":                   func() any { return &servingv1.Service{} },
	"sources.knative.dev/v1/PingSource":                func() any { return &sourcesv1.PingSource{} },
	"networking.internal.knative.dev/v1alpha1/Ingress": func() any { return &ingressv1alpha1.Ingress{} },
}

// The types of these groups are not Go modules that this program imports.
var foreign = []string{"monitoring.coreos.com/", "cert-manager.io/", "kustomize.config.k8s.io/", "sources.knative.dev/v1/KafkaSource"}

func check(document string) error {
	var about struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(document), &about); err != nil {
		return err
	}
	where := about.Kind + " " + about.Metadata.Name
	for _, group := range foreign {
		if strings.HasPrefix(about.APIVersion+"/"+about.Kind, group) {
			return nil
		}
	}
	make, known := kinds[about.APIVersion+"/"+about.Kind]
	if !known {
		return fmt.Errorf("%s: %s/%s is not a known kind", where, about.APIVersion, about.Kind)
	}
	object := make()
	if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	if own, validates := object.(validated); validates {
		own.SetDefaults(context.Background())
		if err := own.Validate(context.Background()); err != nil {
			return fmt.Errorf("%s: %s", where, err.Error())
		}
	}
	return nil
}

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	faults, count := 0, 0
	for _, document := range strings.Split("\n"+string(text), "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		count++
		if err := check(document); err != nil {
			fmt.Println(err)
			faults++
		}
	}
	fmt.Printf("%d objects, %d faults\n", count, faults)
	if faults > 0 {
		os.Exit(1)
	}
}
