package db

import (
	"net/netip"

	"github.com/skein-vpn/skein/tailnet"
)

type serviceRow struct {
	TailnetID   int64   `gorm:"primaryKey;autoIncrement:false"`
	ID          string  `gorm:"primaryKey"` // the name
	IPv4        *string `gorm:"column:ipv4"`
	IPv6        *string `gorm:"column:ipv6"`
	DisplayName string
	Comment     string
	Annotations *string // JSON
	Ports       *string // JSON
	Tags        *string // JSON
	CreatedAt   *string
	UpdatedAt   *string
}

func (serviceRow) TableName() string { return "services" }

func makeServiceRow(id tailnet.ID, s *tailnet.Service) (serviceRow, error) {
	f := &fields{table: "services", tailnet: int64(id), id: s.Name}
	r := serviceRow{
		TailnetID:   int64(id),
		ID:          s.Name,
		IPv4:        text(f, "ipv4", addr{s.IPv4}),
		IPv6:        text(f, "ipv6", addr{s.IPv6}),
		DisplayName: s.DisplayName,
		Comment:     s.Comment,
		Ports:       list(f, "ports", s.Ports),
		Tags:        list(f, "tags", s.Tags),
		CreatedAt:   f.time("created_at", s.Created),
		UpdatedAt:   f.time("updated_at", s.Updated),
	}
	if len(s.Annotations) > 0 {
		t := toJSON(f, "annotations", s.Annotations)
		r.Annotations = &t
	}
	return r, f.err()
}

func (r *serviceRow) domain() (*tailnet.Service, error) {
	f := &fields{table: "services", tailnet: r.TailnetID, id: r.ID}
	s := &tailnet.Service{
		Name:        r.ID,
		IPv4:        parse[netip.Addr](f, "ipv4", r.IPv4),
		IPv6:        parse[netip.Addr](f, "ipv6", r.IPv6),
		DisplayName: r.DisplayName,
		Comment:     r.Comment,
		Ports:       parseList[string](f, "ports", r.Ports),
		Tags:        parseList[string](f, "tags", r.Tags),
		Created:     f.parseTime("created_at", r.CreatedAt),
		Updated:     f.parseTime("updated_at", r.UpdatedAt),
	}
	if r.Annotations != nil {
		fromJSON(f, "annotations", *r.Annotations, &s.Annotations)
	}
	return s, f.err()
}
