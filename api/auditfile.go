package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/skein-vpn/skein/tailnet"
)

// AuditFile is a file to which the audit log is written as it grows, one entry in JSON a line, as AuditEntry has it. Beside it,
// PATH.pos says up to where. After a crash the last entries may be there twice, but none is missing. The file may be moved away at
// any time (logrotate): it is made anew. It belongs to one goroutine.
type AuditFile struct {
	path string
	pos  tailnet.AuditPos
}

// OpenAuditFile reads up to where the file at path has been written; a file that is new gets the whole log.
func OpenAuditFile(path string) (*AuditFile, error) {
	a := &AuditFile{path: path}
	b, err := os.ReadFile(path + ".pos")
	if err == nil {
		if a.pos, err = tailnet.ParseAuditPos(strings.TrimSpace(string(b))); err != nil {
			return nil, fmt.Errorf("%s.pos: %w; remove it to write the whole audit log again", path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the audit log's file cannot be used: %w", err)
	}
	return a, a.append(nil) // a folder that is missing is told at once
}

// Pos is up to where the log has been written.
func (a *AuditFile) Pos() tailnet.AuditPos { return a.pos }

// Write appends entries.
func (a *AuditFile) Write(es []*tailnet.AuditEntry) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, e := range es {
		if err := enc.Encode(AuditJSON(e)); err != nil {
			return fmt.Errorf("entry %s of the audit log: %w", e.ID(), err)
		}
	}
	if err := a.append(b.Bytes()); err != nil {
		return err
	}
	a.pos = es[len(es)-1].Pos()
	tmp := a.path + ".pos.new"
	if err := os.WriteFile(tmp, []byte(a.pos.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the audit log's file: %w", err)
	}
	return os.Rename(tmp, a.path+".pos")
}

// append opens the file for each write, so that one that was moved away is made anew.
func (a *AuditFile) append(b []byte) error {
	f, err := os.OpenFile(a.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("the audit log's file cannot be used: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the audit log's file: %w", err)
	}
	return nil
}
