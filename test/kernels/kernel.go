// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// releases are the supported kernels, oldest first, each with the Debian suite
// that has it.
var releases = []struct{ name, suite string }{
	{"5.10", "bullseye"},
	{"6.1", "bookworm"},
	{"6.12", "trixie"},
	{"7", "sid"},
}

// matrix returns the names of all kernels.
func matrix() []string {
	var names []string
	for _, r := range releases {
		names = append(names, r.name)
	}
	return names
}

// kernel is a kernel that is ready to boot.
type kernel struct {
	name    string // as in releases
	release string // as uname -r prints it
	image   string // file
	modules string // file: cpio archive of lib/modules and boot/config-*
	ssh     string // file: settings of ssh for the Vagrant machine, instead of image and modules
}

// kept are the modules that a machine gets, by the folder of the module tree:
// those of networking, virtio and overlayfs and all they need.
var kept = []string{
	"net", "drivers/net", "drivers/virtio", "drivers/vdpa", "drivers/block/virtio_blk.ko", "drivers/char/virtio_console.ko", "fs/overlayfs", "arch", "crypto", "lib",
}

// dropped are folders in kept ones that no test can use.
var dropped = []string{
	"drivers/net/ethernet", "drivers/net/wireless", "net/bluetooth", "net/ceph", "net/mac80211", "net/smc", "net/sunrpc", "net/wireless",
	"arch/x86/kvm",
}

// choice are the modules of a kernel in the cache, in words.
func choice() string { return fmt.Sprintln(kept, "without", dropped) }

// prepareKernel returns a kernel of the matrix from cache, where it is put
// when it is not there, or with other modules, or when refresh asks for it.
func prepareKernel(ctx context.Context, cache, name string, refresh bool) (*kernel, error) {
	dir := filepath.Join(cache, name)
	k := &kernel{name: name, image: filepath.Join(dir, "vmlinuz"), modules: filepath.Join(dir, "modules.cpio")}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	chosen, _ := os.ReadFile(filepath.Join(dir, "chosen"))
	if errors.Is(err, os.ErrNotExist) || string(chosen) != choice() || refresh {
		if err := fetchKernel(ctx, cache, name); err != nil {
			return nil, fmt.Errorf("fetch Linux %s: %w", name, err)
		}
		release, err = os.ReadFile(filepath.Join(dir, "release"))
	}
	k.release = string(release)
	return k, err
}

func fetchKernel(ctx context.Context, cache, name string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	i := slices.Index(matrix(), name)
	unpacked := filepath.Join(work, "unpacked")
	if err := download(ctx, work, releases[i].suite, unpacked); err != nil {
		return err
	}
	ready := filepath.Join(work, "ready")
	if err := arrange(ctx, unpacked, ready); err != nil {
		return err
	}
	// Two runs may fetch one kernel at a time: the last stays.
	dir := filepath.Join(cache, name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(ready, dir)
}

// download unpacks the newest cloud kernel of a Debian suite into dir. apt
// works on lists and settings in work, so that those of this host stay as they
// are. It verifies signatures as usual, but not their age: suites are archived,
// and mirrors kept.
func download(ctx context.Context, work, suite, dir string) error {
	mirror := mirror(ctx)
	if mirror == "" {
		return errors.New("apt here knows no Debian mirror: set TENDRIL_DEBIAN_MIRROR to the address of one")
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"sources.list": "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " + mirror + " " + suite + " main\n",
		"apt.conf": fmt.Sprintf(`Dir::Etc::SourceList "%[1]s/sources.list"; Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "%[1]s/lists"; Dir::State::Status "/dev/null"; Dir::Cache "%[1]s/cache";
Acquire::Check-Valid-Until "false"; Acquire::Retries "2"; Acquire::Languages "none";
APT::Architecture "amd64"; APT::Sandbox::User ""; quiet "2";
`, work),
	} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	conf := filepath.Join(work, "apt.conf")
	if _, err := output(ctx, work, "apt-get", "-c", conf, "-o", "APT::Update::Error-Mode=any", "update"); err != nil {
		return fmt.Errorf("no Debian mirror with suite %s at %s (TENDRIL_DEBIAN_MIRROR names another): %w", suite, mirror, err)
	}
	// The kernel is in one package or in several that depend on each other.
	packages := []string{"linux-image-cloud-amd64"}
	for i := 0; i < len(packages); i++ {
		text, err := output(ctx, work, "apt-cache", "-c", conf, "show", "--no-all-versions", packages[i])
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			depends, ok := strings.CutPrefix(line, "Depends:")
			for dependency := range strings.SplitSeq(depends, ",") {
				if f := strings.Fields(dependency); ok && len(f) > 0 && strings.HasSuffix(f[0], "-cloud-amd64") &&
					!slices.Contains(packages, f[0]) {
					packages = append(packages, f[0])
				}
			}
		}
	}
	debs := filepath.Join(work, "debs")
	if _, err := output(ctx, debs, "apt-get", append([]string{"-c", conf, "download"}, packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if _, err := output(ctx, debs, "dpkg-deb", "-x", file, dir); err != nil {
			return err
		}
	}
	return nil
}

// mirror is the Debian mirror that this host's apt uses, or "".
func mirror(ctx context.Context) string {
	if m := os.Getenv("TENDRIL_DEBIAN_MIRROR"); m != "" {
		return m
	}
	text, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI)",
		"Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
	if m, _, ok := strings.Cut(text, "\n"); err == nil && ok {
		return m
	}
	return ""
}

// arrange makes the files of kernel in dir out of an unpacked kernel package.
func arrange(ctx context.Context, unpacked, dir string) error {
	one := func(patterns ...string) (string, error) {
		for _, p := range patterns {
			if found, _ := filepath.Glob(filepath.Join(unpacked, p)); len(found) == 1 {
				return found[0], nil
			}
		}
		return "", fmt.Errorf("find %s in the kernel's package: %w", patterns[0], os.ErrNotExist)
	}
	tree, err := one("lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return err
	}
	image, err := one("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz*")
	if err != nil {
		return err
	}
	config, err := one("boot/config-*", "usr/lib/modules/*/config*")
	if err != nil {
		return err
	}
	release := filepath.Base(tree)
	modules, err := keep(ctx, tree)
	if err != nil {
		return err
	}

	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "modules.cpio"))
	if err != nil {
		return err
	}
	a := newArchive(f)
	a.copy("boot/config-"+release, config)
	for _, m := range modules {
		a.copy(filepath.Join("lib/modules", release, m), filepath.Join(tree, m))
	}
	if err := errors.Join(a.close(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "chosen"), []byte(choice()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "release"), []byte(release), 0o644)
}

// keep throws the other modules out of a module tree, unpacks those that stay
// and writes the lists that modprobe reads. It returns the files there are
// then, relative to tree.
func keep(ctx context.Context, tree string) ([]string, error) {
	within := func(file string, folders []string) bool {
		return slices.ContainsFunc(folders, func(f string) bool {
			return strings.HasPrefix(file, filepath.Join(tree, "kernel", f))
		})
	}
	var packed []string
	err := filepath.WalkDir(filepath.Join(tree, "kernel"), func(file string, d os.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
			return err
		case !within(file, kept) || within(file, dropped):
			return os.Remove(file)
		case strings.HasSuffix(file, ".xz"):
			packed = append(packed, file)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(packed) > 0 {
		if _, err := output(ctx, tree, "xz", append([]string{"-d"}, packed...)...); err != nil {
			return nil, err
		}
	}
	base, release, _ := strings.Cut(tree, "/lib/modules/")
	if _, err := output(ctx, tree, "busybox", "depmod", "-b", base, release); err != nil {
		return nil, err
	}
	var files []string
	err = filepath.WalkDir(tree, func(file string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(tree, file)
		if err == nil && d.Type().IsRegular() && (strings.HasPrefix(rel, "kernel/") || strings.HasPrefix(rel, "modules.")) {
			files = append(files, rel)
		}
		return err
	})
	return files, err
}

// output runs a command in dir and returns what it printed.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
