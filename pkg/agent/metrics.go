// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tendril-net/tendril/pkg/api"
)

// Metrics are what Prometheus scrapes. What the kernel knows is read from it at
// each scrape; only the CNI requests are counted here.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	log      *slog.Logger
}

// NewMetrics returns the metrics of a service, with those of the process.
func NewMetrics(s *Service) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		log:      s.log,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tendril_cni_requests_total",
			Help: "Requests of the CNI plugin, by operation and result: ok or the code of the error.",
		}, []string{"operation", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tendril_cni_request_duration_seconds",
			Help: "Time the agent took to answer a request of the CNI plugin.",
			// From a cached answer to a plugin that is about to give up.
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"operation"}),
	}
	m.registry.MustRegister(m.requests, m.duration, newCollector(s),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe counts a request; it fits api.HandlerOptions.
func (m *Metrics) Observe(operation, code string, took time.Duration) {
	m.requests.WithLabelValues(operation, cmp.Or(code, "ok")).Inc()
	m.duration.WithLabelValues(operation).Observe(took.Seconds())
}

// Handler serves GET /metrics.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, // what can be read is worth having
		ErrorLog:      slog.NewLogLogger(m.log.Handler(), slog.LevelError),
		// A scrape reads maps of the kernel: nobody needs many at once.
		MaxRequestsInFlight: 4,
	}))
	return mux
}

// collector turns a Service and its datapath into metrics at scrape.
type collector struct {
	service *Service

	packets, bytes, drops                 *prometheus.Desc
	mapEntries, mapCapacity, mapMemory    *prometheus.Desc
	leases, leaseCapacity                 *prometheus.Desc
	endpoints, buildInfo, draining, ready *prometheus.Desc
	policies, policyRules, policyDenied   *prometheus.Desc
}

func newCollector(s *Service) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tendril_"+name, help, labels, nil)
	}
	return &collector{
		service:       s,
		packets:       desc("packets_total", "Packets that a program of the datapath met, by what became of them.", "journey", "reason"),
		bytes:         desc("bytes_total", "Bytes of the packets that a program of the datapath met, link layer header included.", "journey", "reason"),
		drops:         desc("drops_total", "Packets that a program of the datapath dropped, by reason.", "journey", "reason"),
		mapEntries:    desc("map_entries", "Entries in a map of the datapath. Arrays, whose entries always exist, have none.", "map"),
		mapCapacity:   desc("map_capacity_entries", "Entries that a map of the datapath can hold.", "map"),
		mapMemory:     desc("map_memory_bytes", "Memory that the kernel has locked for a map of the datapath.", "map"),
		leases:        desc("ipam_leases", "Addresses leased from a range set of a network.", "network", "set"),
		leaseCapacity: desc("ipam_capacity_leases", "Addresses that a range set of a network can lease.", "network", "set"),
		endpoints:     desc("endpoints", "Endpoints of the node, by state.", "state"),
		draining:      desc("endpoint_ids_draining", "Numbers of removed endpoints that wait for the purge of their flows."),
		ready:         desc("healthy", "Whether the agent can serve an ADD: 1 or 0."),
		policies:      desc("policies", "NetworkPolicy objects that count."),
		policyRules:   desc("policy_rules", "Rules of the NetworkPolicy objects that count."),
		policyDenied:  desc("policy_denied_flows", "New flows that no rule let through, of the endpoints that there are now.", "direction"),
		buildInfo:     desc("build_info", "Always 1; the labels say what runs.", "version", "goversion"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.packets, c.bytes, c.drops, c.mapEntries, c.mapCapacity, c.mapMemory,
		c.leases, c.leaseCapacity, c.endpoints, c.draining, c.ready, c.buildInfo,
		c.policies, c.policyRules, c.policyDenied,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	c.collectDatapath(ch, gauge)
	c.collectPolicy(ch, gauge)
	sets := make(map[string]int)
	for _, p := range c.service.opts.Leases.Pools() {
		set := strconv.Itoa(sets[p.Network])
		sets[p.Network]++
		gauge(c.leases, float64(p.Leased), p.Network, set)
		gauge(c.leaseCapacity, float64(p.Capacity), p.Network, set)
	}
	states := map[api.EndpointState]int{api.Pending: 0, api.Ready: 0, api.Detached: 0}
	s := c.service
	s.mu.Lock()
	for _, r := range s.index.records {
		states[s.index.shown(r).State]++
	}
	draining, healthy := len(s.index.ids.draining), len(s.problems) == 0
	s.mu.Unlock()
	for state, count := range states {
		gauge(c.endpoints, float64(count), string(state))
	}
	gauge(c.draining, float64(draining))
	value := 0.0
	if healthy {
		value = 1
	}
	gauge(c.ready, value)
	gauge(c.buildInfo, 1, s.opts.Version, runtime.Version())
}

func (c *collector) collectPolicy(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string)) {
	objects, rules := c.service.firewall.snapshot()
	gauge(c.policies, float64(len(objects.Policies)))
	gauge(c.policyRules, float64(len(rules)))
	hits, err := c.service.opts.Datapath.Policy.PolicyDenied()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.policyDenied, fmt.Errorf("read policy hits: %w", err))
		return
	}
	for direction, denied := range map[string]map[uint16]uint64{"ingress": hits.IngressDenied, "egress": hits.EgressDenied} {
		sum := uint64(0)
		for _, n := range denied {
			sum += n
		}
		gauge(c.policyDenied, float64(sum), direction)
	}
}

func (c *collector) collectDatapath(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string)) {
	stats := c.service.opts.Datapath.Stats
	counters, err := stats.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.packets, fmt.Errorf("read counters: %w", err))
	}
	count := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	for _, one := range counters {
		count(c.packets, one.Packets, one.Journey, one.Reason)
		count(c.bytes, one.Bytes, one.Journey, one.Reason)
		if one.Dropped {
			count(c.drops, one.Packets, one.Journey, one.Reason)
		}
	}
	usages, err := stats.Maps()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.mapEntries, fmt.Errorf("read map usage: %w", err))
	}
	for _, m := range usages {
		if !m.Array { // it would look full
			gauge(c.mapEntries, float64(m.Entries), m.Name)
		}
		gauge(c.mapCapacity, float64(m.Capacity), m.Name)
		gauge(c.mapMemory, float64(m.Memory), m.Name)
	}
}
