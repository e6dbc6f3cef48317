// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/yaml"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/policy"
)

// policyName is the name of an object; the namespace is empty for that of a Namespace.
type policyName struct{ namespace, name string }

func (n policyName) kind() string {
	if n.namespace == "" {
		return "Namespace"
	}
	return "NetworkPolicy"
}

// String is what errors call it.
func (n policyName) String() string {
	if n.namespace == "" {
		return "namespace " + n.name
	}
	return n.namespace + "/" + n.name
}

// file is the name of the file in which an applied object is kept. Names of namespaces
// have no dots, so no two objects have one.
func (n policyName) file() string {
	if n.namespace == "" {
		return "namespace-" + n.name + ".yaml"
	}
	return n.namespace + "." + n.name + ".yaml"
}

// maxPolicyFileName leaves room for what a file is called until it is complete: the
// kernel allows 255 bytes.
const maxPolicyFileName = 240

// policyPlan is a change of objects and of the files that keep them.
type policyPlan struct {
	set     policySet // afterwards
	changes []api.ObjectChange
	files   []policyFile
}

// policyFile is a change of one file; nil is none.
type policyFile struct {
	path          string
	before, after []byte
}

// kept is an object and where it is.
type kept struct {
	source string
	object any
}

// contents are the objects of a set by name, and how many each file has.
func contents(o *policy.Objects) (objects map[policyName]kept, files map[string]int) {
	objects, files = make(map[policyName]kept), make(map[string]int)
	for _, p := range o.Policies {
		objects[policyName{p.Object.Namespace, p.Object.Name}] = kept{p.Source, p.Object}
		files[p.Source]++
	}
	for _, n := range o.Namespaces {
		objects[policyName{"", n.Object.Name}] = kept{n.Source, n.Object}
		files[n.Source]++
	}
	return objects, files
}

// plan implements policyStore. Refused is what is in a file that was not applied.
func (d *policyDir) plan(now policySet, put *policy.Objects, drop []policyName) (policyPlan, error) {
	plan := policyPlan{set: policySet{stamp: maps.Clone(now.stamp)}}
	if plan.set.stamp == nil {
		plan.set.stamp = make(policyStamp)
	}
	existing, perFile := contents(now.objects)
	given, _ := contents(put)
	for _, name := range slices.SortedFunc(maps.Keys(given), comparePolicyNames) {
		path := filepath.Join(d.path, name.file())
		if len(name.file()) > maxPolicyFileName {
			return policyPlan{}, &api.Error{
				Code: api.CodeInvalid, Key: "metadata.name", Value: name.name,
				Message: fmt.Sprintf("keep %s: the names are too long for a file", name),
			}
		}
		change := api.ObjectChange{Kind: name.kind(), Namespace: name.namespace, Name: name.name, Change: api.ObjectCreated, File: path}
		old, there := existing[name]
		if err := d.checkOwn(name, old, there, perFile); err != nil {
			return policyPlan{}, err
		}
		if there {
			change.Change = api.ObjectChanged
			if equality.Semantic.DeepEqual(old.object, given[name].object) {
				change.Change = api.ObjectUnchanged
			}
		}
		plan.changes = append(plan.changes, change)
		if change.Change == api.ObjectUnchanged {
			continue
		}
		text, err := policyText(given[name].object)
		if err != nil {
			return policyPlan{}, fmt.Errorf("encode %s: %w", name, err)
		}
		if len(text) > policy.MaxSize {
			return policyPlan{}, &api.Error{
				Code: api.CodeExhausted, Key: "policy-dir", Value: path,
				Message: fmt.Sprintf("keep %s: it takes %d bytes, and %d are read", name, len(text), policy.MaxSize),
			}
		}
		if err := plan.add(path, text); err != nil {
			return policyPlan{}, err
		}
	}
	gone := make(map[policyName]bool)
	for _, name := range drop {
		old, there := existing[name]
		if !there {
			return policyPlan{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no policy %s", name)}
		}
		if err := d.checkOwn(name, old, there, perFile); err != nil {
			return policyPlan{}, err
		}
		gone[name] = true
		plan.changes = append(plan.changes, api.ObjectChange{
			Kind: name.kind(), Namespace: name.namespace, Name: name.name, Change: api.ObjectDeleted, File: old.source,
		})
		if err := plan.add(old.source, nil); err != nil {
			return policyPlan{}, err
		}
	}
	plan.set.objects = replaced(now.objects, put, gone, func(n policyName) string { return filepath.Join(d.path, n.file()) })
	return plan, d.checkRoom(plan)
}

// checkRoom refuses what the folder would not be read with.
func (d *policyDir) checkRoom(plan policyPlan) error {
	refuse := func(format string, args ...any) error {
		return &api.Error{Code: api.CodeExhausted, Key: "policy-dir", Value: d.path, Message: fmt.Sprintf(d.path+" would have "+format, args...)}
	}
	sizes := make(map[string]int64, len(plan.set.stamp))
	for path := range plan.set.stamp {
		if info, err := os.Stat(path); err == nil {
			sizes[path] = info.Size()
		}
	}
	for _, f := range plan.files {
		sizes[f.path] = int64(len(f.after))
	}
	var total int64
	for _, size := range sizes {
		total += size
	}
	switch grows := slices.ContainsFunc(plan.files, func(f policyFile) bool { return f.after != nil }); {
	case !grows:
		return nil // who deletes makes room
	case len(plan.set.stamp) > maxPolicyFiles:
		return refuse("%d files, and %d are read", len(plan.set.stamp), maxPolicyFiles)
	case total > maxPolicyBytes:
		return refuse("%d bytes, and %d are read", total, maxPolicyBytes)
	}
	return nil
}

func comparePolicyNames(a, b policyName) int {
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
}

// checkOwn refuses to touch a file that somebody has written: one of another name, or
// with more in it.
func (d *policyDir) checkOwn(name policyName, old kept, there bool, perFile map[string]int) error {
	path := filepath.Join(d.path, name.file())
	conflict := func(file, reason string) error {
		return &api.Error{
			Code: api.CodeConflict, Key: "policy-dir", Value: file,
			Message: fmt.Sprintf("%s is in %s, %s: change it there", name, file, reason),
		}
	}
	switch {
	case there && old.source != path:
		return conflict(old.source, "which was not applied but written by hand")
	case there && perFile[path] > 1:
		return conflict(path, "with others")
	case !there && perFile[path] > 0:
		return &api.Error{
			Code: api.CodeConflict, Key: "policy-dir", Value: path,
			Message: fmt.Sprintf("%s would be kept in %s, which holds something else", name, path),
		}
	}
	return nil
}

// add is one more change of a file.
func (p *policyPlan) add(path string, after []byte) error {
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read policy: %w", err)
	}
	p.files = append(p.files, policyFile{path, before, after})
	delete(p.set.stamp, path)
	if after != nil {
		p.set.stamp[path] = sha256.Sum256(after)
	}
	return nil
}

// replaced are the objects with others in place of those of the same name, and without
// some.
func replaced(now, put *policy.Objects, gone map[policyName]bool, path func(policyName) string) *policy.Objects {
	all := &policy.Objects{}
	given, _ := contents(put)
	left := func(n policyName) bool {
		_, again := given[n]
		return !again && !gone[n]
	}
	for _, p := range now.Policies {
		if left(policyName{p.Object.Namespace, p.Object.Name}) {
			all.Policies = append(all.Policies, p)
		}
	}
	for _, n := range now.Namespaces {
		if left(policyName{"", n.Object.Name}) {
			all.Namespaces = append(all.Namespaces, n)
		}
	}
	for _, p := range put.Policies {
		all.Policies = append(all.Policies, policy.Policy{Source: path(policyName{p.Object.Namespace, p.Object.Name}), Object: p.Object})
	}
	for _, n := range put.Namespaces {
		all.Namespaces = append(all.Namespaces, policy.Namespace{Source: path(policyName{"", n.Object.Name}), Object: n.Object})
	}
	return all
}

const policyHead = "# Written by `tendril policy apply`, which replaces it.\n"

// policyText is an object as its file has it.
func policyText(object any) ([]byte, error) {
	text, err := yaml.Marshal(object)
	return append([]byte(policyHead), text...), err
}

// temporaryPolicy is what the names of files begin with that are not complete.
const temporaryPolicy = ".tendril-"

// write implements policyStore.
func (d *policyDir) write(plan policyPlan) (err error) {
	if len(plan.files) == 0 {
		return nil
	}
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		return fmt.Errorf("make policy-dir: %w", err)
	}
	if stale, err := filepath.Glob(filepath.Join(d.path, temporaryPolicy+"*")); err == nil {
		for _, path := range stale { // of an agent that was killed
			_ = os.Remove(path)
		}
	}
	staged := make([]string, len(plan.files))
	defer func() {
		for _, path := range staged {
			if path != "" {
				_ = os.Remove(path) // those that were renamed are gone
			}
		}
	}()
	for i, f := range plan.files {
		if f.after == nil {
			continue
		}
		if staged[i], err = d.stage(f.after); err != nil {
			return fmt.Errorf("write policy: %w", err)
		}
	}
	for i, f := range plan.files {
		if f.after == nil {
			err = os.Remove(f.path)
		} else {
			err = os.Rename(staged[i], f.path)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("write policy: %w", err), d.undo(plan.files[:i]))
		}
	}
	if err := d.sync(); err != nil {
		return errors.Join(err, d.undo(plan.files))
	}
	return nil
}

// stage writes a text to a file that nobody reads yet.
func (d *policyDir) stage(text []byte) (path string, err error) {
	file, err := os.CreateTemp(d.path, temporaryPolicy+"*")
	if err != nil {
		return "", err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	return file.Name(), errors.Join(err, file.Close())
}

// undo puts files back.
func (d *policyDir) undo(files []policyFile) error {
	var errs []error
	for _, f := range files {
		if f.before == nil {
			errs = append(errs, os.Remove(f.path))
			continue
		}
		path, err := d.stage(f.before)
		if err == nil {
			err = os.Rename(path, f.path)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("put policies back: %w", err)
	}
	return nil
}

// sync has the folder outlive a loss of power.
func (d *policyDir) sync() error {
	dir, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("open policy-dir: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
