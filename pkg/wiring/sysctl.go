// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// sysctlRoot shows the settings of the network namespace of the thread that
// opens its files.
const sysctlRoot = "/proc/sys/net"

// errNoIPv6 is what an IPv6 address meets on a kernel booted with
// ipv6.disable=1.
var errNoIPv6 = errors.New("the kernel has no IPv6 (ipv6.disable=1)")

// prepareIPv6 sets the two IPv6 settings of a new link that its defaults may
// have wrong. It must come before the link is up.
//
//   - accept_ra=0, on both sides. On the host's side it keeps a container from
//     giving the node a default route (CVE-2020-10749; distributions set 2,
//     which accepts advertisements on routers too). In the container it spares
//     the router solicitations, and the wired routes stay the only ones.
//   - disable_ipv6=0, only where it is 1 and the link gets an IPv6 address,
//     because a write takes the kernel's one link lock and a read does not.
func prepareIPv6(n *Namespace, name string, addresses bool) error {
	err := n.Do(func() error {
		dir := filepath.Join(sysctlRoot, "ipv6/conf", name)
		switch err := writeSetting(filepath.Join(dir, "accept_ra"), "0"); {
		case errors.Is(err, fs.ErrNotExist) && !addresses:
			return nil
		case errors.Is(err, fs.ErrNotExist):
			return errNoIPv6
		case err != nil || !addresses:
			return err
		}
		disabled, err := os.ReadFile(filepath.Join(dir, "disable_ipv6"))
		if err != nil || disabled[0] == '0' {
			return err
		}
		return writeSetting(filepath.Join(dir, "disable_ipv6"), "0")
	})
	if err != nil {
		return fmt.Errorf("prepare IPv6 on %s: %w", name, err)
	}
	return nil
}

// writeSetting writes without O_CREATE and O_TRUNC, which mean nothing here
// and cost a look at the file's attributes.
func writeSetting(path, value string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}
