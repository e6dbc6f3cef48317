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

// What an IPv6 address meets on a kernel booted with ipv6.disable=1, and on a link that
// the kernel shows no IPv6 settings of.
var (
	errNoIPv6     = errors.New("the kernel has no IPv6 (ipv6.disable=1)")
	errNoIPv6Here = errors.New("the link is gone, or its mtu is less than the 1280 of IPv6")
)

// prepareIPv6 sets the IPv6 settings of a link that its defaults may have wrong. Those of
// a new one must come before it is up.
//
//   - off are set to 0. accept_ra is one, on both sides of a pair and on a bridge. On the
//     host's side it keeps a container from giving the node a default route
//     (CVE-2020-10749; distributions set 2, which accepts advertisements on routers too).
//     In the container it spares the router solicitations, and the wired routes stay the
//     only ones.
//   - disable_ipv6=0, only where it is 1 and the link gets an IPv6 address,
//     because a write takes the kernel's one link lock and a read does not.
func prepareIPv6(n *Namespace, name string, addresses bool, off ...string) error {
	err := n.Do(func() error {
		conf := filepath.Join(sysctlRoot, "ipv6/conf")
		err := writeIPv6(filepath.Join(conf, name), addresses, off)
		switch {
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case !addresses:
			return nil
		}
		if _, err := os.Stat(filepath.Join(conf, "all")); err == nil {
			return errNoIPv6Here
		}
		return errNoIPv6
	})
	if err != nil {
		return fmt.Errorf("prepare IPv6 on %s: %w", name, err)
	}
	return nil
}

// askForDuplicates turns duplicate address detection on for a link, where it is off.
func askForDuplicates(n *Namespace, name string) error {
	err := n.Do(func() error {
		path := filepath.Join(sysctlRoot, "ipv6/conf", name, "accept_dad")
		value, err := os.ReadFile(path)
		if err != nil || value[0] != '0' {
			return err
		}
		return writeSetting(path, "1")
	})
	if err != nil {
		return fmt.Errorf("turn on duplicate address detection of %s: %w", name, err)
	}
	return nil
}

func writeIPv6(dir string, addresses bool, off []string) error {
	for _, setting := range off {
		if err := writeSetting(filepath.Join(dir, setting), "0"); err != nil {
			return err
		}
	}
	if !addresses {
		return nil
	}
	disabled, err := os.ReadFile(filepath.Join(dir, "disable_ipv6"))
	if err != nil || disabled[0] == '0' {
		return err
	}
	return writeSetting(filepath.Join(dir, "disable_ipv6"), "0")
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
