package state

import (
	"cmp"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// Credentials are all API keys, OAuth clients and federated identities, sorted by id. The slice must not be changed.
func (sn *Snapshot) Credentials() []*tailnet.Credential { return sn.creds }

// Credential is the one with this id, or nil.
func (sn *Snapshot) Credential(id string) *tailnet.Credential {
	i, ok := slices.BinarySearchFunc(sn.creds, id, func(c *tailnet.Credential, id string) int { return cmp.Compare(c.ID, id) })
	if !ok {
		return nil
	}
	return sn.creds[i]
}

// Credentials are all of them with the changes so far, sorted by id.
func (tx *Tx) Credentials() []*tailnet.Credential {
	return overlay(tx.base.creds, tx.creds, func(c *tailnet.Credential) string { return c.ID })
}

// Credential is the one with this id, or nil.
func (tx *Tx) Credential(id string) *tailnet.Credential {
	if c, ok := tx.creds[id]; ok {
		return c
	}
	return tx.base.Credential(id)
}

// PutCredential stores c, which is new or a changed Clone. It fails if its user does not exist.
func (tx *Tx) PutCredential(c *tailnet.Credential) error {
	if c.User != 0 && tx.User(c.User) == nil {
		return tailnet.Errorf(tailnet.NotFound, "there is no namespace with id %d", c.User)
	}
	tx.touched(touchCredential, 0, c.ID, tx.Credential(c.ID))
	put(tx, tx.creds, c.ID, c)
	return nil
}

// DeleteCredential removes a credential; it is not an error if there is none.
func (tx *Tx) DeleteCredential(id string) {
	tx.touched(touchCredential, 0, id, tx.Credential(id))
	put(tx, tx.creds, id, nil)
}
