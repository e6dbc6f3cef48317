// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// object is JSON to be.
type object map[string]any

// podSubnet is what the addresses of containers are leased from. Each node is a
// namespace, so all have the same.
const podSubnet = "10.10.0.0/16"

// network is a CNI network of a node. It executes plugins one after the other
// as runtimes do (CNI specification 1.0.0, section 4).
type network struct {
	node *namespace
	name string
	// folder of the plugins.
	folder  string
	plugins []object
	// results are what the last plugin answered, by container: DEL gets it again.
	results map[string]json.RawMessage
}

// container is one to be attached.
type container struct {
	id string
	ns *namespace
	// ports of the host that lead to it: what the runtime passes as portMappings.
	ports []object
	// bandwidth is what the runtime passes as such, nil for no limit.
	bandwidth object
}

// add attaches a container and returns its address.
func (n *network) add(ctx context.Context, c container) (netip.Addr, error) {
	var (
		result json.RawMessage
		err    error
	)
	for _, p := range n.plugins {
		if result, err = n.execute(ctx, "ADD", p, c, result); err != nil {
			return netip.Addr{}, err
		}
	}
	if n.results == nil {
		n.results = make(map[string]json.RawMessage)
	}
	n.results[c.id] = result
	var answer struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(result, &answer); err != nil || len(answer.IPs) == 0 {
		return netip.Addr{}, fmt.Errorf("network %s gave no address: %s: %w", n.name, result, err)
	}
	return answer.IPs[0].Address.Addr(), nil
}

// del detaches a container.
func (n *network) del(ctx context.Context, c container) error {
	for _, p := range slices.Backward(n.plugins) {
		if _, err := n.execute(ctx, "DEL", p, c, n.results[c.id]); err != nil {
			return err
		}
	}
	delete(n.results, c.id)
	return nil
}

// execute runs one plugin in the node.
func (n *network) execute(ctx context.Context, command string, plugin object, c container, previous json.RawMessage) (json.RawMessage, error) {
	config := maps.Clone(plugin)
	config["cniVersion"], config["name"] = "1.0.0", n.name
	if previous != nil {
		config["prevResult"] = previous
	}
	capabilities, _ := plugin["capabilities"].(object)
	runtime := object{}
	if capabilities["portMappings"] != nil && len(c.ports) > 0 {
		runtime["portMappings"] = c.ports
	}
	if capabilities["bandwidth"] != nil && c.bandwidth != nil {
		runtime["bandwidth"] = c.bandwidth
	}
	if len(runtime) > 0 {
		config["runtimeConfig"] = runtime
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	binary := filepath.Join(n.folder, plugin["type"].(string))
	process := exec.CommandContext(ctx, binary)
	process.Stdin = bytes.NewReader(text)
	process.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.ns.path,
		"CNI_IFNAME=eth0", "CNI_PATH="+n.folder)
	var out, log bytes.Buffer
	process.Stdout, process.Stderr = &out, &log
	if err := n.node.do(process.Run); err != nil {
		return nil, fmt.Errorf("%s of %s: %w: %s%s", command, binary, err, out.Bytes(), log.Bytes())
	}
	return out.Bytes(), nil
}

// hostLocal is the reference IPAM plugin with the state in home.
func hostLocal(name string) object {
	return object{
		"type":    "host-local",
		"dataDir": home + "/leases/" + name,
		"ranges":  [][]object{{{"subnet": podSubnet}}},
		"routes":  []object{{"dst": "0.0.0.0/0"}},
	}
}

// chainPlugins is what Podman and containerd's examples configure.
func chainPlugins(name string) []object {
	return []object{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": hostLocal(name)},
		{"type": "portmap", "capabilities": object{"portMappings": true}},
		{"type": "firewall"},
	}
}

func bridgePlugins(name string) []object {
	return []object{{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": hostLocal(name)}}
}

func ptpPlugins(name string) []object {
	return []object{{"type": "ptp", "ipMasq": true, "ipam": hostLocal(name)}}
}

// limitPlugins is ptp and what limits it.
func limitPlugins(name string) []object {
	return append(ptpPlugins(name), object{"type": "bandwidth", "capabilities": object{"bandwidth": true}})
}

func tendrilPlugins(socket string) []object {
	return []object{{
		"type": "tendril-cni", "driver": "routed", "socket": socket, "ipMasq": true,
		"ipam":         object{"type": "tendril", "ranges": [][]object{{{"subnet": podSubnet}}}},
		"capabilities": object{"portMappings": true, "bandwidth": true},
	}}
}
