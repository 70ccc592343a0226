package db

// The tables as gorm sees them. Columns and constraints are made by the migrations; a field here needs a column there and two
// lines in convert.go. A pointer is a column that may be NULL, which is how zero values of keys, times, ids and lists are stored.

type tailnetRow struct {
	ID               int64 `gorm:"primaryKey;autoIncrement:false"`
	Name             string
	Rev              int64
	LastNodeID       int64
	LastUserID       int64
	LastPreAuthKeyID int64
	LastPolicyID     int64
	Settings         string // JSON
}

func (tailnetRow) TableName() string { return "tailnets" }

type userRow struct {
	TailnetID   int64 `gorm:"primaryKey;autoIncrement:false"`
	ID          int64 `gorm:"primaryKey;autoIncrement:false"`
	Name        string
	DisplayName string
	Email       string
	Role        string
	Status      string
	CreatedAt   *string
	Provider    string
	ProviderID  string
	Picture     string
	Groups      *string `gorm:"column:idp_groups"` // JSON
}

func (userRow) TableName() string { return "users" }

type policyRow struct {
	TailnetID int64 `gorm:"primaryKey;autoIncrement:false"`
	ID        int64 `gorm:"primaryKey;autoIncrement:false"`
	Text      string
	Author    string
	Comment   string
	CreatedAt *string
}

func (policyRow) TableName() string { return "policies" }

type preAuthKeyRow struct {
	TailnetID   int64 `gorm:"primaryKey;autoIncrement:false"`
	ID          int64 `gorm:"primaryKey;autoIncrement:false"`
	Prefix      string
	Hash        string // hex, or bcrypt
	UserID      *int64
	Tags        *string // JSON
	Reusable    bool
	Ephemeral   bool
	Preapproved bool
	Description string
	KeyDuration int64 // nanoseconds
	Used        bool
	CreatedAt   *string
	ExpiresAt   *string
	Revoked     bool
}

func (preAuthKeyRow) TableName() string { return "pre_auth_keys" }

type nodeRow struct {
	TailnetID      int64 `gorm:"primaryKey;autoIncrement:false"`
	ID             int64 `gorm:"primaryKey;autoIncrement:false"`
	StableID       string
	MachineKey     *string
	NodeKey        string
	OldNodeKey     *string
	OldKeyUntil    *string
	Attributes     *string // JSON
	Hostings       *string // JSON
	ServicesHash   string
	DiscoKey       *string
	UserID         *int64
	Tags           *string // JSON
	Hostname       string
	Name           string
	NameFixed      bool
	IPv4           *string `gorm:"column:ipv4"`
	IPv6           *string `gorm:"column:ipv6"`
	Ephemeral      bool
	RegisterMethod string
	PreAuthKeyID   *int64
	CreatedAt      *string
	ExpiresAt      *string
	NeverExpires   bool
	Authorized     bool
	Hostinfo       string  // JSON
	Endpoints      *string // JSON
	EndpointTypes  *string // JSON
	HomeDERP       int64   `gorm:"column:home_derp"`
	Capver         int64
	ApprovedRoutes *string // JSON
	NLKey          *string `gorm:"column:nl_key"`
	KeySignature   *string // hex
}

func (nodeRow) TableName() string { return "nodes" }

type presenceRow struct {
	TailnetID     int64 `gorm:"primaryKey;autoIncrement:false"`
	NodeID        int64 `gorm:"primaryKey;autoIncrement:false"`
	Online        bool
	LastSeen      *string
	PrimaryRoutes *string // JSON
	Server        string  // which holds the map session; empty: the only one
	Failing       bool
	Steady        bool
	Seq           int64 // of the save that wrote the row, by presence_seq
}

func (presenceRow) TableName() string { return "presence" }

type deletedNodeRow struct {
	TailnetID  int64 `gorm:"primaryKey;autoIncrement:false"`
	Rev        int64 `gorm:"primaryKey;autoIncrement:false"`
	ID         int64 `gorm:"primaryKey;autoIncrement:false"`
	DeletedAt  string
	StableID   string
	MachineKey *string
	NodeKey    string
	UserID     *int64
	Tags       *string // JSON
	Hostname   string
	Name       string
	IPv4       *string `gorm:"column:ipv4"`
	IPv6       *string `gorm:"column:ipv6"`
	Ephemeral  bool
	CreatedAt  *string
	ExpiresAt  *string
}

func (deletedNodeRow) TableName() string { return "deleted_nodes" }

type revisionRow struct {
	TailnetID          int64 `gorm:"primaryKey;autoIncrement:false"`
	Rev                int64 `gorm:"primaryKey;autoIncrement:false"`
	At                 string
	Why                *string // JSON; so are all below
	Settings           bool
	PutNodes           *string
	DeletedNodes       *string
	PutUsers           *string
	DeletedUsers       *string
	PutPreAuthKeys     *string
	DeletedPreAuthKeys *string
	PutCredentials     *string
	DeletedCredentials *string
	PutServices        *string
	DeletedServices    *string
	CommitID           *string // random; NULL in revisions from before there were several servers
}

func (revisionRow) TableName() string { return "revisions" }

type loginRow struct {
	TailnetID  int64  `gorm:"primaryKey;autoIncrement:false"`
	ID         string `gorm:"primaryKey"`
	MachineKey *string
	NodeKey    string
	OldNodeKey *string
	NLKey      *string `gorm:"column:nl_key"`
	Hostinfo   string  // JSON
	ExpiresAt  *string
	Ephemeral  bool
	Capver     int64
	Remote     string
	CreatedAt  string
}

func (loginRow) TableName() string { return "logins" }

type sshCheckRow struct {
	TailnetID  int64  `gorm:"primaryKey;autoIncrement:false"`
	ID         string `gorm:"primaryKey"`
	Src        int64
	Dst        int64
	SrcUser    int64
	SSHUser    string `gorm:"column:ssh_user"`
	LocalUser  string
	Period     int64 // nanoseconds
	CreatedAt  string
	ApprovedAt *string
	Denied     bool
	DecidedBy  string
}

func (sshCheckRow) TableName() string { return "ssh_checks" }

type accountRow struct {
	TailnetID     int64  `gorm:"primaryKey;autoIncrement:false"`
	UserID        int64  `gorm:"primaryKey;autoIncrement:false"`
	Handle        string // hex
	Password      string
	PasswordSetAt *string
	CreatedAt     string
	SignedInAt    *string
}

func (accountRow) TableName() string { return "accounts" }

type passkeyRow struct {
	TailnetID int64  `gorm:"primaryKey;autoIncrement:false"`
	ID        string `gorm:"primaryKey"`
	UserID    int64
	Name      string
	Data      string // JSON
	CreatedAt string
	UsedAt    *string
}

func (passkeyRow) TableName() string { return "passkeys" }

type accountLinkRow struct {
	TailnetID int64  `gorm:"primaryKey;autoIncrement:false"`
	ID        string `gorm:"primaryKey"`
	UserID    *int64
	Name      string
	Role      string
	First     bool
	CreatedAt string
	ExpiresAt string
	UsedAt    *string
}

func (accountLinkRow) TableName() string { return "account_links" }

type webSessionRow struct {
	TailnetID  int64  `gorm:"primaryKey;autoIncrement:false"`
	ID         string `gorm:"primaryKey"`
	UserID     int64
	Method     string
	NodesEndAt *string
	Remote     string
	Agent      string
	CreatedAt  string
	SeenAt     string
	ExpiresAt  string
}

func (webSessionRow) TableName() string { return "web_sessions" }

type providerGrantRow struct {
	TailnetID int64 `gorm:"primaryKey;autoIncrement:false"`
	UserID    int64 `gorm:"primaryKey;autoIncrement:false"`
	Provider  string
	Token     *string // hex
	CreatedAt string
	CheckedAt string
}

func (providerGrantRow) TableName() string { return "provider_grants" }
