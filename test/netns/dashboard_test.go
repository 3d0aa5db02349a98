package netns

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

const (
	dashboardFile = "../../deploy/grafana/nfq-ftphelper.json"
	alertsFile    = "../../deploy/prometheus/alerts.yaml"
)

var (
	promQLString   = regexp.MustCompile(`"[^"]*"`)
	promQLLabels   = regexp.MustCompile(`(?:\b(?:by|on|group_left|without|ignoring)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\])`)
	promQLName     = regexp.MustCompile(`\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?:\s*\()?`)
	alertExpr      = regexp.MustCompile(`(?m)^ +expr: (.*)$`)
	promQLKeywords = []string{"and", "or", "unless", "bool"}
)

// namesIn splits an expression of PromQL into the names of its metrics and of its labels.
func namesIn(expr string) (metrics, labels []string) {
	expr = strings.NewReplacer("$__rate_interval", "5m").Replace(promQLString.ReplaceAllString(expr, `""`))
	for _, group := range promQLLabels.FindAllString(expr, -1) {
		for _, name := range promQLName.FindAllString(group, -1) {
			if group[0] != '[' && !strings.HasSuffix(name, "(") {
				labels = append(labels, name)
			}
		}
	}
	for _, name := range promQLName.FindAllString(promQLLabels.ReplaceAllString(expr, " "), -1) {
		if !strings.HasSuffix(name, "(") && !slices.Contains(promQLKeywords, name) {
			metrics = append(metrics, name)
		}
	}
	return metrics, labels
}

// expressions are all of the dashboard and the alerts.
func expressions(t testing.TB) []string {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	must.Do(t, err)
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	must.Do(t, json.Unmarshal(text, &dashboard))
	var all []string
	ids := make(map[int]bool)
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
		if ids[p.ID] || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("the dashboard's panel %d is there twice, or has nothing to show", p.ID)
		}
		ids[p.ID] = true
	}
	text, err = os.ReadFile(alertsFile)
	must.Do(t, err)
	for _, match := range alertExpr.FindAllStringSubmatch(string(text), -1) {
		all = append(all, match[1])
	}
	if len(all) < 20 {
		t.Errorf("there are only %d expressions", len(all))
	}
	return all
}

// wantKnown wants the dashboard and the alerts to use only metrics that a daemon exports, with labels that
// these have; and the dashboard to show all of our own. The daemon has to have the capabilities of the
// packaged service: root's exports more.
func wantKnown(t testing.TB, scraped string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(scraped))
	must.Do(t, err)
	// Prometheus itself adds these.
	known, knownLabels := map[string]bool{"up": true}, map[string]bool{"instance": true, "job": true}
	used := make(map[string]bool)
	for name, family := range families {
		known[name] = family.Metric[0].Histogram == nil
		if !known[name] {
			known[name+"_bucket"], known[name+"_sum"], known[name+"_count"], knownLabels["le"] = true, true, true, true
		}
		for _, m := range family.Metric {
			for _, l := range m.Label {
				knownLabels[l.GetName()] = true
			}
		}
	}
	for _, expr := range expressions(t) {
		metrics, labels := namesIn(expr)
		for _, name := range metrics {
			if used[strings.TrimSuffix(name, "_bucket")] = true; !known[name] {
				t.Errorf("there is no metric %s, in %s", name, expr)
			}
		}
		for _, name := range labels {
			if !knownLabels[name] && !slices.Contains([]string{"by", "on", "group_left"}, name) {
				t.Errorf("there is no label %s, in %s", name, expr)
			}
		}
		if len(metrics) == 0 {
			t.Errorf("no metric is in %s", expr)
		}
	}
	for name := range families {
		if strings.HasPrefix(name, metricPrefix) && !used[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}
