// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Maps are the shared maps, opened. Whoever called Open closes them.
type Maps struct {
	Endpoints         *ebpf.Map `ebpf:"endpoints"`
	Interfaces        *ebpf.Map `ebpf:"interfaces"`
	Trunks            *ebpf.Map `ebpf:"trunks"`
	Children          *ebpf.Map `ebpf:"children"`
	ChildPrograms     *ebpf.Map `ebpf:"child_programs"`
	Flows             *ebpf.Map `ebpf:"flows"`
	Translations      *ebpf.Map `ebpf:"translations"`
	Allocations       *ebpf.Map `ebpf:"allocations"`
	Held              *ebpf.Map `ebpf:"held"`
	Epochs            *ebpf.Map `ebpf:"epochs"`
	MasqueradeExclude *ebpf.Map `ebpf:"masquerade_exclude"`
	StackDestinations *ebpf.Map `ebpf:"stack_destinations"`
	Ports             *ebpf.Map `ebpf:"ports"`
	HostAddresses     *ebpf.Map `ebpf:"host_addresses"`
	Peers             *ebpf.Map `ebpf:"peers"`
	Sockets           *ebpf.Map `ebpf:"sockets"`
	PolicyGeneration  *ebpf.Map `ebpf:"policy_generation"`
	Subjects          *ebpf.Map `ebpf:"subjects"`
	Identities        *ebpf.Map `ebpf:"identities"`
	Policies          *ebpf.Map `ebpf:"policies"`
	Hits              *ebpf.Map `ebpf:"hits"`
	Denied            *ebpf.Map `ebpf:"denied"`
	Bandwidth         *ebpf.Map `ebpf:"bandwidth"`
	Unshaped          *ebpf.Map `ebpf:"unshaped"`
	Fragments         *ebpf.Map `ebpf:"fragments"`
	Counters          *ebpf.Map `ebpf:"counters"`

	// Names of journeys and counters, by value, as metrics and the CLI show them.
	JourneyNames []string
	CounterNames []string

	// Kept are the maps whose pinned size is not the one that was asked for.
	Kept []KeptSize

	made []string // what Open put below the folder
	// identityTree is what identities holds.
	identityTree *ebpf.MapSpec
}

// KeptSize is a pinned map that has another size than was asked for, in entries.
type KeptSize struct {
	Map         string
	Wanted, Has uint32
}

// Sizes of the maps that the configuration sets, in entries. 0 takes the default.
type Sizes struct {
	Flows        uint32
	Translations uint32
}

// IncompatibleError is a pinned map, or a set of maps, whose layout is not ours.
type IncompatibleError struct {
	Path   string
	Reason string
}

func (e *IncompatibleError) Error() string {
	return fmt.Sprintf("map %s was pinned by an incompatible version: %s", e.Path, e.Reason)
}

// Open adopts the maps pinned in dir, and creates and pins those that are not
// there. A pinned map keeps its size, and is in Kept if that is another. Where a
// map does not fit, nothing is changed and the error is an *IncompatibleError.
func Open(dir string, sizes Sizes) (*Maps, error) {
	spec, err := loadKernel()
	if err != nil {
		return nil, fmt.Errorf("read map specifications: %w", err)
	}
	if sizes.Flows != 0 {
		spec.Maps[kernelMapFlows].MaxEntries = sizes.Flows
	}
	if sizes.Translations != 0 {
		spec.Maps[kernelMapTranslations].MaxEntries = sizes.Translations
		spec.Maps[kernelMapAllocations].MaxEntries = max(1, sizes.Translations/2)
	}
	if err := checkLayout(dir, spec); err != nil {
		return nil, err
	}

	m := &Maps{
		JourneyNames: enumNames(spec, "journey"), CounterNames: enumNames(spec, "counter"),
		identityTree: spec.Maps[kernelMapIdentities].InnerMap,
	}
	// All that is there is judged before anything is made.
	for name, field := range m.byName() {
		if *field, err = adopt(filepath.Join(dir, name), spec.Maps[name]); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	for _, name := range []string{kernelMapFlows, kernelMapTranslations} {
		if pinned, want := *m.byName()[name], spec.Maps[name].MaxEntries; pinned != nil && pinned.MaxEntries() != want {
			m.Kept = append(m.Kept, KeptSize{Map: name, Wanted: want, Has: pinned.MaxEntries()})
		}
	}
	for name, field := range m.byName() {
		if *field != nil {
			continue
		}
		path := filepath.Join(dir, name)
		if *field, err = create(path, spec.Maps[name]); err != nil {
			return nil, errors.Join(err, m.Undo(), m.Close())
		}
		m.made = append(m.made, path)
	}
	switch err := os.Mkdir(filepath.Join(dir, layoutDir(spec)), 0o700); {
	case err == nil:
		m.made = append(m.made, filepath.Join(dir, layoutDir(spec)))
	case !errors.Is(err, os.ErrExist):
		return nil, errors.Join(fmt.Errorf("record layout: %w", err), m.Undo(), m.Close())
	}
	return m, nil
}

// NewIdentityTree makes a map of nodes that Identities can hold. The caller closes it.
func (m *Maps) NewIdentityTree(nodes uint32) (*ebpf.Map, error) {
	spec := m.identityTree.Copy()
	spec.Name, spec.MaxEntries = "identity_tree", nodes
	tree, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map identity_tree: %w", err)
	}
	return tree, nil
}

// Undo removes the pins that Open made. Maps that it adopted keep theirs.
func (m *Maps) Undo() error {
	var errs []error
	for _, path := range m.made {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove new pin: %w", err))
		}
	}
	m.made = nil
	return errors.Join(errs...)
}

// Close drops the handles; what is pinned stays.
func (m *Maps) Close() error {
	var errs []error
	for _, field := range m.byName() {
		errs = append(errs, (*field).Close())
	}
	return errors.Join(errs...)
}

// All returns the maps by name.
func (m *Maps) All() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	for name, field := range m.byName() {
		all[name] = *field
	}
	return all
}

func (m *Maps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		kernelMapEndpoints:         &m.Endpoints,
		kernelMapInterfaces:        &m.Interfaces,
		kernelMapTrunks:            &m.Trunks,
		kernelMapChildren:          &m.Children,
		kernelMapChildPrograms:     &m.ChildPrograms,
		kernelMapFlows:             &m.Flows,
		kernelMapTranslations:      &m.Translations,
		kernelMapAllocations:       &m.Allocations,
		kernelMapHeld:              &m.Held,
		kernelMapEpochs:            &m.Epochs,
		kernelMapMasqueradeExclude: &m.MasqueradeExclude,
		kernelMapStackDestinations: &m.StackDestinations,
		kernelMapPorts:             &m.Ports,
		kernelMapHostAddresses:     &m.HostAddresses,
		kernelMapPeers:             &m.Peers,
		kernelMapSockets:           &m.Sockets,
		kernelMapPolicyGeneration:  &m.PolicyGeneration,
		kernelMapSubjects:          &m.Subjects,
		kernelMapIdentities:        &m.Identities,
		kernelMapPolicies:          &m.Policies,
		kernelMapHits:              &m.Hits,
		kernelMapDenied:            &m.Denied,
		kernelMapBandwidth:         &m.Bandwidth,
		kernelMapUnshaped:          &m.Unshaped,
		kernelMapFragments:         &m.Fragments,
		kernelMapCounters:          &m.Counters,
	}
}

// adopt opens a pinned map that fits the specification; nil when there is none.
func adopt(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	pinned, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	if reason := mismatch(pinned, spec); reason != "" {
		return nil, errors.Join(&IncompatibleError{Path: path, Reason: reason}, pinned.Close())
	}
	return pinned, nil
}

func create(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	created, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("create map %s: %w", spec.Name, err)
	}
	if err := created.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin map %s: %w", path, err), created.Close())
	}
	return created, nil
}

func mismatch(m *ebpf.Map, spec *ebpf.MapSpec) string {
	switch {
	case m.Type() != spec.Type:
		return fmt.Sprintf("its type is %s, not %s", m.Type(), spec.Type)
	case m.KeySize() != spec.KeySize:
		return fmt.Sprintf("its keys have %d bytes, not %d", m.KeySize(), spec.KeySize)
	case m.ValueSize() != spec.ValueSize:
		return fmt.Sprintf("its values have %d bytes, not %d", m.ValueSize(), spec.ValueSize)
	}
	return ""
}

const layoutPrefix = "layout-"

// checkLayout refuses maps whose fields have the same sizes but other meanings:
// the folder of the maps holds an empty folder named for their layout.
func checkLayout(dir string, spec *ebpf.CollectionSpec) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), layoutPrefix) && entry.Name() != layoutDir(spec) {
			return &IncompatibleError{Path: dir, Reason: fmt.Sprintf("it has %s, this version %s", entry.Name(), layoutDir(spec))}
		}
	}
	return nil
}

// layoutDir names the layout of all keys and values, their fields' names included.
func layoutDir(spec *ebpf.CollectionSpec) string {
	names := make([]string, 0, len(spec.Maps))
	for name := range spec.Maps {
		if !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	hash := fnv.New64a()
	for _, name := range names {
		_, _ = fmt.Fprintln(hash, name, spec.Maps[name].Type)
		describe(hash, spec.Maps[name].Key)
		describe(hash, spec.Maps[name].Value)
		if inner := spec.Maps[name].InnerMap; inner != nil {
			_, _ = fmt.Fprintln(hash, inner.Type, inner.Flags)
			describe(hash, inner.Key)
			describe(hash, inner.Value)
		}
	}
	for _, name := range []string{"action", "flow_flag", "translation_state", "translation_flag", "endpoint_flag", "port_flag", "interface_role", "key_kind", "subject_flag", "identity_next"} {
		var enum *btf.Enum
		if spec.Types.TypeByName(name, &enum) == nil {
			_, _ = fmt.Fprintln(hash, enum.Values)
		}
	}
	return fmt.Sprintf("%s%016x", layoutPrefix, hash.Sum64())
}

func describe(w interface{ Write([]byte) (int, error) }, t btf.Type) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		for _, member := range t.Members {
			_, _ = fmt.Fprintln(w, member.Name, member.Offset)
			describe(w, member.Type)
		}
	case *btf.Array:
		_, _ = fmt.Fprintln(w, "array", t.Nelems)
		describe(w, t.Type)
	default:
		size, _ := btf.Sizeof(t)
		_, _ = fmt.Fprintln(w, "bytes", size)
	}
}

// enumNames returns a C enum's names in lower case, without the words that only
// C needs and without the last, which counts the others.
func enumNames(spec *ebpf.CollectionSpec, name string) []string {
	var enum *btf.Enum
	if err := spec.Types.TypeByName(name, &enum); err != nil {
		return nil
	}
	names := make([]string, len(enum.Values)-1)
	for _, v := range enum.Values[:len(names)] {
		short := strings.TrimPrefix(strings.TrimPrefix(v.Name, "COUNTER_"), "DROP_")
		names[v.Value] = strings.ToLower(short)
	}
	return names
}
