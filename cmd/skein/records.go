package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// The file of extra DNS records (dns.extra_records_path), which other programs write: a JSON list of
//
//	{"name": "nas.skein.internal", "type": "A", "value": "100.64.0.4"}
//
// as headscale reads it. It is looked at every recordsEvery; one with faults changes nothing.

const (
	recordsEvery   = 2 * time.Second
	maxRecordsFile = 4 << 20
)

// readRecords reads the file at path. A file that does not exist has no records: whoever writes it may come later.
func readRecords(path string) ([]tailnet.DNSRecord, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordsFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxRecordsFile {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxRecordsFile>>20)
	}
	return parseRecords(b)
}

func parseRecords(b []byte) ([]tailnet.DNSRecord, error) {
	var rows []struct{ Name, Type, Value string }
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(b, &rows); err != nil {
		return nil, fmt.Errorf(`it is not a list such as [{"name": "nas.skein.internal", "type": "A", "value": "100.64.0.4"}]: %w`, err)
	}
	set := tailnet.DNS{}
	for i, r := range rows {
		a, err := netip.ParseAddr(r.Value)
		switch {
		case err != nil:
			return nil, fmt.Errorf("record %d (%q): value %q is not an address", i+1, r.Name, r.Value)
		case r.Type != "" && r.Type != "A" && r.Type != "AAAA":
			return nil, fmt.Errorf("record %d (%q): type %q: clients take A and AAAA only", i+1, r.Name, r.Type)
		case r.Type == "A" && !a.Is4() || r.Type == "AAAA" && !a.Is6():
			return nil, fmt.Errorf("record %d (%q): %s does not fit type %s", i+1, r.Name, r.Value, r.Type)
		}
		set.Records = append(set.Records, tailnet.DNSRecord{Name: r.Name, Addr: a})
	}
	norm, err := set.Normalize()
	if err != nil || norm == nil {
		return nil, err
	}
	return norm.Records, nil
}

// followRecords publishes the records of the file whenever it changes, until ctx ends.
func (s *server) followRecords(ctx context.Context, path string) {
	tick := time.NewTicker(recordsEvery)
	defer tick.Stop()
	var seen os.FileInfo
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := os.Stat(path) // follows links, as Kubernetes swaps them
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if seen != nil && info != nil && os.SameFile(seen, info) && seen.ModTime().Equal(info.ModTime()) && seen.Size() == info.Size() || seen == nil && info == nil {
			continue
		}
		seen = info
		records, err := readRecords(path)
		if err != nil {
			s.log.Error("the file of DNS records has faults; the old records stay", "path", path, "err", err)
			continue
		}
		changed := false
		err = s.state.Update(ctx, "DNS records file changed", func(tx *state.Tx) error {
			changed = tx.SetFileRecords(records)
			return nil
		})
		switch {
		case err != nil && !errors.Is(err, state.ErrClosed):
			s.log.Error("new DNS records could not be published", "err", err)
		case changed:
			s.log.Info("DNS records read", "path", path, "records", len(records))
		}
	}
}
