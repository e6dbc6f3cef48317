// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/tendril-net/tendril/pkg/api"
)

// call is what the environment says of an operation.
type call struct {
	command string
	api.Attachment
	// netns is the path of the container's network namespace.
	netns string
	// path lists the directories of delegated plugins.
	path string
	// args are the pairs of CNI_ARGS, unknown those of their keys that the
	// plugin has no use for and was not told to overlook.
	args    map[string]string
	unknown []string
}

// parseCall reads the CNI_* variables and validates those that the command
// needs. Errors have code 4 and name the variable.
func parseCall(getenv func(string) string, command string, attachment bool) (call, error) {
	c := call{
		command: command, netns: getenv("CNI_NETNS"), path: getenv("CNI_PATH"),
		Attachment: api.Attachment{ContainerID: getenv("CNI_CONTAINERID"), IfName: getenv("CNI_IFNAME")},
	}
	if !attachment {
		return c, nil
	}
	var missing []string
	for _, variable := range []struct {
		name, value string
		optional    bool
	}{
		{name: "CNI_CONTAINERID", value: c.ContainerID},
		{name: "CNI_IFNAME", value: c.IfName},
		{name: "CNI_NETNS", value: c.netns, optional: command == "DEL"},
	} {
		if variable.value == "" && !variable.optional {
			missing = append(missing, variable.name)
		}
	}
	if missing != nil {
		return c, faultf(types.ErrInvalidEnvironmentVariables, "%s: missing", strings.Join(missing, ", "))
	}
	if err := utils.ValidateContainerID(c.ContainerID); err != nil {
		return c, faultf(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID: %s: %q", err.Msg, c.ContainerID)
	}
	// ADD makes nothing under a name that cannot be, so DEL has nothing to refuse.
	if reason := api.IfNameFault(c.IfName); reason != "" && command != "DEL" {
		return c, faultf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: %q %s", c.IfName, reason)
	}
	// DEL has no use for CNI_ARGS, and so no quarrel with them.
	if err := c.parseArgs(getenv("CNI_ARGS")); err != nil && command != "DEL" {
		return c, err
	}
	return c, nil
}

// parseArgs reads CNI_ARGS: K=V pairs between semicolons.
func (c *call) parseArgs(text string) error {
	c.args = make(map[string]string)
	if text == "" {
		return nil
	}
	for _, pair := range strings.Split(text, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return faultf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %q is not a pair KEY=VALUE", pair)
		}
		switch {
		case key == "IP", key == "MAC", key == "IgnoreUnknown", strings.HasPrefix(key, "K8S_"):
		default:
			c.unknown = append(c.unknown, key)
		}
		c.args[key] = value
	}
	if ignore := strings.ToLower(c.args["IgnoreUnknown"]); ignore == "1" || ignore == "true" {
		c.unknown = nil
	}
	return nil
}

// refuseUnknown is for calls in which no other plugin could know the key.
// Kubernetes' runtimes all set IgnoreUnknown.
func (c *call) refuseUnknown() error {
	if len(c.unknown) == 0 {
		return nil
	}
	return faultf(types.ErrInvalidEnvironmentVariables,
		"CNI_ARGS: unknown key %q; known are IP, MAC, IgnoreUnknown and K8S_*, and IgnoreUnknown=1 overlooks others", c.unknown[0])
}
