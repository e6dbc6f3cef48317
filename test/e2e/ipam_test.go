// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// ipamName is the name under which the test binary is an IPAM plugin: one that
// leases 10.30.0.2 and up, a file per lease in the folder that ipam.dir names.
const ipamName = "e2e-ipam"

// ipamDir returns a folder for CNI_PATH that has the plugin.
func ipamDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	self := must(os.Executable())(t)
	if err := os.Symlink(self, filepath.Join(dir, ipamName)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ipamMain() int {
	if err := ipamRun(); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.1.0", "code": 999, "msg": err.Error()})
		return 1
	}
	return 0
}

func ipamRun() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var config struct {
		IPAM struct {
			Dir string `json:"dir"`
		} `json:"ipam"`
		Valid []struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		} `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	name := func(id, ifName string) string { return filepath.Join(config.IPAM.Dir, id+"."+ifName) }
	lease := name(os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME"))
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
		entries, err := os.ReadDir(config.IPAM.Dir)
		if err != nil {
			return err
		}
		if err := os.WriteFile(lease, nil, 0o600); err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]any{
			"cniVersion": "1.1.0",
			"ips":        []any{map[string]any{"address": fmt.Sprintf("10.30.0.%d/24", 2+len(entries)), "gateway": "10.30.0.1"}},
			"routes":     []any{map[string]any{"dst": "0.0.0.0/0"}},
		})
	case "DEL":
		if err := os.Remove(lease); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case "GC":
		keep := make(map[string]bool)
		for _, a := range config.Valid {
			keep[name(a.ContainerID, a.IfName)] = true
		}
		leases, err := filepath.Glob(filepath.Join(config.IPAM.Dir, "*"))
		if err != nil {
			return err
		}
		for _, one := range leases {
			if !keep[one] {
				if err := os.Remove(one); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
