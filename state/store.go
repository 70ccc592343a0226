package state

import (
	"context"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// Store keeps tailnets durably. db.DB is the one in use; its SQLite and PostgreSQL sides pass the same tests.
type Store interface {
	// Load reads everything the tailnet holds, at one Rev.
	Load(ctx context.Context, id tailnet.ID) (*tailnet.Contents, error)

	// Commit writes ch as one transaction that takes the tailnet from Rev known to the Rev returned, and appends to its
	// revisions. It is durable when Commit returns. If the tailnet is no longer at known nothing is written and the error is
	// ErrConflict; any other error has written nothing either. Deleted nodes leave a tombstone.
	Commit(ctx context.Context, id tailnet.ID, known tailnet.Rev, ch *tailnet.Changes) (tailnet.Rev, error)

	// Since is what happened after the Rev and the save of presence given. The error is tailnet.ErrGap if that cannot be told row
	// by row: then Load tells.
	Since(ctx context.Context, id tailnet.ID, known tailnet.Rev, presence int64) (*tailnet.Step, error)

	// Policies are the versions of the policy, the newest first, at most limit of them, and only those before a version; 0: all.
	Policies(ctx context.Context, id tailnet.ID, limit int, before tailnet.PolicyID) ([]*tailnet.PolicyVersion, error)

	// Policy is one version of the policy; a tailnet.NotFound error if there is none with this number.
	Policy(ctx context.Context, id tailnet.ID, version tailnet.PolicyID) (*tailnet.PolicyVersion, error)

	// SavePresence writes soft state, without a new Rev, on behalf of a server (empty: the only one). Of nodes whose map session
	// that server holds it writes everything, unless the node is offline and another server has taken it over meanwhile; of other
	// nodes only the routes that they carry. Unknown ids are ignored.
	SavePresence(ctx context.Context, id tailnet.ID, server string, p map[tailnet.NodeID]tailnet.Presence) error

	// DeletedNode is the node that was deleted while it had this NodeKey, or nil if there was none (or it is long ago).
	DeletedNode(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Node, error)
}

// ErrConflict is what Store.Commit returns if somebody else has changed the tailnet.
var ErrConflict = tailnet.ErrConflict
