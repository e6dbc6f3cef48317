// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/ipam"
)

// stateFormat is raised when a record changes in a way that an older or newer
// agent would misread.
const stateFormat = "1"

// Buckets of the state file that are this package's; pkg/ipam has its own.
var (
	bucketMeta      = []byte("agent")     // "format" -> stateFormat
	bucketEndpoints = []byte("endpoints") // container ID "/" interface name -> record
	bucketDraining  = []byte("draining")  // endpoint id, 2 bytes big endian -> nothing
	bucketSettings  = []byte("settings")  // path below /proc/sys -> setting
	bucketMounts    = []byte("mounts")    // path of a file system that we mounted -> nothing
	bucketVLANs     = []byte("vlans")     // name of a VLAN that we made -> its index, 4 bytes big endian; nothing before it is made
)

// StateError says that the state file cannot be used.
type StateError struct {
	Path   string
	Reason string
	Err    error // may be nil
}

func (e *StateError) Error() string {
	reason := e.Reason
	if e.Err != nil {
		reason += ": " + e.Err.Error()
	}
	return fmt.Sprintf("read state file %s: %s; it describes the containers that run now: stop them, "+
		"remove it with `tendril-agent cleanup --force` and start again", e.Path, reason)
}

// Unwrap returns what is wrong in detail.
func (e *StateError) Unwrap() error { return e.Err }

// OpenState opens the state file, or makes one. The error is a *StateError
// for a file that is damaged or of another format; the file stays as it is.
func OpenState(path string) (*bbolt.DB, error) {
	// Whoever holds the file was named by the lock of the state directory.
	db, err := ipam.OpenFile(path, ipam.FileOptions{})
	if errors.Is(err, ipam.ErrCorrupt) {
		return nil, &StateError{Path: path, Reason: "damaged", Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open state file: %w", err)
	}
	if err := initState(db, path); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func initState(db *bbolt.DB, path string) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketEndpoints, bucketDraining, bucketSettings, bucketMounts, bucketVLANs} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		meta := tx.Bucket(bucketMeta)
		switch format := string(meta.Get([]byte("format"))); format {
		case "":
			return meta.Put([]byte("format"), []byte(stateFormat))
		case stateFormat:
			return nil
		default:
			return &StateError{Path: path, Reason: fmt.Sprintf("format %q, this agent knows %q", format, stateFormat)}
		}
	})
}

// record is what the state file holds of an endpoint.
type record struct {
	api.Endpoint
	// Origin is the network as the ADD described it, ranges in canonical
	// form. Without ranges the addresses are another IPAM plugin's.
	Origin api.Network `json:"origin"`
	// Device is where the device of a ready endpoint with DriverMacvlan is.
	Device childPlace `json:"device,omitzero"`
	// AddressesLater says that they have not come yet.
	AddressesLater bool `json:"addressesLater,omitempty"`
	// bridge is the interface index of the node's device among the ports of Bridge as it was found
	// last; 0 without one.
	bridge int
}

// childPlace is what of a wiring.ChildLink does not change while the device exists.
type childPlace struct {
	NetNSInode  uint64 `json:"netnsInode"`
	NetNSNumber int    `json:"netnsNumber"`
	Index       int    `json:"index"`
	// Parent is the interface index of the parent.
	Parent int `json:"parent"`
}

// at is a place that one device has at a time.
func (p childPlace) at() [2]int { return [2]int{p.NetNSNumber, p.Index} }

// isChild tells whether the container's interface is a macvlan device: nothing of the node
// is the endpoint's alone.
func (r *record) isChild() bool { return r.Driver == api.DriverMacvlan }

// isRouted tells whether the addresses lead to the endpoint's own device.
func (r *record) isRouted() bool { return r.Bridge == "" && !r.isChild() }

// leased tells whether the addresses are leases of pkg/ipam.
func (r *record) leased() bool { return len(r.Origin.Ranges) > 0 }

func recordKey(a api.Attachment) []byte { return []byte(a.ContainerID + "/" + a.IfName) }

// decodeRecord reads what putRecord wrote. The error names the endpoint.
func decodeRecord(key, value []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("read endpoint %q: %w", key, err)
	}
	if fault := r.fault(key); fault != "" {
		return nil, fmt.Errorf("read endpoint %q: %s", key, fault)
	}
	return r, nil
}

// fault says why no agent can have written a record, of the parts that are taken at their
// word: a device by this name is removed. It is empty for one that an agent can have written.
func (r *record) fault(key []byte) string {
	if string(recordKey(r.Attachment)) != string(key) || r.ID == 0 {
		return "the record is another's"
	}
	if r.State != api.Pending && r.State != api.Ready {
		return fmt.Sprintf("state %.64q is none", r.State)
	}
	name := api.HostIfName(r.Attachment)
	switch r.Driver {
	case api.DriverRouted, api.DriverBridge:
	case api.DriverMacvlan:
		name = "" // nothing on the host
	default:
		return fmt.Sprintf("driver %.64q is none", r.Driver)
	}
	if r.HostIfName != name {
		return fmt.Sprintf("device %.64q is not its", r.HostIfName)
	}
	if (r.Driver == api.DriverBridge) != (r.Bridge != "") {
		return fmt.Sprintf("bridge %.64q with driver %s", r.Bridge, r.Driver)
	}
	for _, text := range []string{r.MAC, r.HostMAC} {
		if r.Driver == api.DriverMacvlan && text == "" {
			continue // a parent may have had none for a while
		}
		if len(parsedMAC(text)) != 6 {
			return fmt.Sprintf("%.64q is no ethernet address", text)
		}
	}
	for i, a := range r.Addresses {
		if !a.Address.IsValid() {
			return fmt.Sprintf("addresses[%d] is none", i)
		}
	}
	return ""
}

func putRecord(tx *bbolt.Tx, r *record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode endpoint %s: %w", recordKey(r.Attachment), err)
	}
	if err := tx.Bucket(bucketEndpoints).Put(recordKey(r.Attachment), value); err != nil {
		return fmt.Errorf("store endpoint %s: %w", recordKey(r.Attachment), err)
	}
	return nil
}

// dropRecord removes an endpoint and keeps its id from being used again until
// it was purged.
func dropRecord(tx *bbolt.Tx, r *record) error {
	if err := tx.Bucket(bucketEndpoints).Delete(recordKey(r.Attachment)); err != nil {
		return fmt.Errorf("remove endpoint %s: %w", recordKey(r.Attachment), err)
	}
	if err := tx.Bucket(bucketDraining).Put(idKey(r.ID), []byte{}); err != nil {
		return fmt.Errorf("mark endpoint id %d: %w", r.ID, err)
	}
	return nil
}

func idKey(id uint16) []byte { return binary.BigEndian.AppendUint16(nil, id) }

func dropDraining(db *bbolt.DB, ids []uint16) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(bucketDraining).Delete(idKey(id)); err != nil {
				return fmt.Errorf("unmark endpoint id %d: %w", id, err)
			}
		}
		return nil
	})
}

// Empty says whether a state file knows of no endpoint.
func Empty(db *bbolt.DB) (bool, error) {
	records, _, err := loadState(db)
	return len(records) == 0, err
}

// loadState reads all endpoints and the ids that wait to be purged: whole, or not at all.
func loadState(db *bbolt.DB) (records []*record, draining []uint16, err error) {
	records, draining, err = readState(db)
	if err != nil {
		return nil, nil, err
	}
	return records, draining, nil
}

// readState is loadState that returns what can be read with the error, which is a StateError.
func readState(db *bbolt.DB) (records []*record, draining []uint16, err error) {
	numbered := make(map[uint16]api.Attachment)
	var faults []error
	err = db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(bucketEndpoints).ForEach(func(key, value []byte) error {
			r, err := decodeRecord(key, value)
			if err != nil {
				faults = append(faults, err)
				return nil
			}
			if other, ok := numbered[r.ID]; ok {
				faults = append(faults, fmt.Errorf("read endpoint %q: its number %d is that of %q", key, r.ID, recordKey(other)))
			}
			numbered[r.ID] = r.Attachment
			records = append(records, r)
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketDraining).ForEach(func(key, _ []byte) error {
			if len(key) != 2 {
				faults = append(faults, fmt.Errorf("read draining endpoint id %q: it has %d bytes", key, len(key)))
				return nil
			}
			draining = append(draining, binary.BigEndian.Uint16(key))
			return nil
		})
	})
	if err = errors.Join(append(faults, err)...); err != nil {
		return records, draining, &StateError{Path: db.Path(), Reason: "damaged", Err: err}
	}
	return records, draining, nil
}

// RecordMount writes down that the agent has mounted a file system at path.
func RecordMount(db *bbolt.DB, path string) error {
	err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMounts).Put([]byte(path), []byte{}) })
	if err != nil {
		return fmt.Errorf("record mount %s: %w", path, err)
	}
	return nil
}

// ForgetMount takes back what RecordMount wrote.
func ForgetMount(db *bbolt.DB, path string) error {
	err := db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMounts).Delete([]byte(path)) })
	if err != nil {
		return fmt.Errorf("forget mount %s: %w", path, err)
	}
	return nil
}

// Mounts returns the paths that were recorded.
func Mounts(db *bbolt.DB) ([]string, error) {
	var paths []string
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMounts).ForEach(func(key, _ []byte) error {
			paths = append(paths, string(key))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return paths, nil
}
