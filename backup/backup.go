// Package backup writes what a server needs to be itself again into one file, and reads it back.
//
// # The file
//
//	[age] ( [gzip] ( tar ) )      age: with a passphrase; gzip: if the name says so. Reading finds out what is there.
//
// The first entry of the tar is manifest.json; it says what the others are. Their names are relative paths below data/ (they go
// back into the data folder) or one of the names below. Nothing else is accepted: no links, no folders, no name that leads out.
//
// # Invariants
//
// A backup is complete or not there: it is written under another name and renamed when it is on the disk. It is readable for its
// owner alone, because it holds the server's keys. Reading never writes outside the folder that it is given.
package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
)

// Names of entries.
const (
	manifestName = "manifest.json"
	Database     = "db.sqlite"               // a whole SQLite database
	Config       = "config.yaml"             // the configuration file
	Policy       = "policy.hujson"           // the policy file
	NoiseKey     = "noise_private.key"       // the server's identity
	DERPKey      = "derp_server_private.key" // the relay's identity
	Data         = "data/"                   // begins the names of all else in the data folder
)

// Limits of what is read.
const (
	maxFiles    = 10_000
	maxManifest = 1 << 20
	maxName     = 512
)

// Manifest says what a backup is of.
type Manifest struct {
	Format   int       `json:"format"` // 1
	Skein    string    `json:"skein"`  // version that wrote it
	Created  time.Time `json:"created"`
	Database string    `json:"database"` // "sqlite", or "postgres": then the database is not in it
	DataDir  string    `json:"dataDir"`
	Config   string    `json:"config"` // where the configuration file was; empty: there was none
	Policy   string    `json:"policy"` // where the policy file was; empty: there was none
	Files    []string  `json:"files"`  // names of the entries
}

// File is an entry to be: its name and where its contents are.
type File struct {
	Name string
	Path string
}

// Options is how a backup is written.
type Options struct {
	Passphrase string // empty: not encrypted
	Compress   bool
}

// WriteFile writes a backup to path with mode 0600. It is on the disk when WriteFile returns. An existing file is replaced only if
// replace is set.
func WriteFile(path string, m Manifest, files []File, o Options, replace bool) (err error) {
	if _, err := os.Lstat(path); err == nil && !replace {
		return fmt.Errorf("%s exists already", path)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(part)
		}
	}()
	if err := errors.Join(f.Chmod(0o600), Write(f, m, files, o)); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Write writes a backup to w.
func Write(w io.Writer, m Manifest, files []File, o Options) error {
	var closers []io.Closer
	if o.Passphrase != "" {
		r, err := age.NewScryptRecipient(o.Passphrase)
		if err != nil {
			return err
		}
		r.SetWorkFactor(workFactor)
		enc, err := age.Encrypt(w, r)
		if err != nil {
			return err
		}
		w, closers = enc, append(closers, enc)
	}
	if o.Compress {
		z := gzip.NewWriter(w)
		w, closers = z, append(closers, z)
	}
	t := tar.NewWriter(w)
	closers = append(closers, t)
	m.Format = 1
	for _, f := range files {
		if err := checkName(f.Name); err != nil {
			return err
		}
		m.Files = append(m.Files, f.Name)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := add(t, manifestName, int64(len(text)), m.Created, bytes.NewReader(text)); err != nil {
		return err
	}
	for _, f := range files {
		if err := addFile(t, f, m.Created); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	for _, c := range slices.Backward(closers) {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

func addFile(t *tar.Writer, f File, at time.Time) error {
	in, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	return add(t, f.Name, fi.Size(), at, in)
}

func add(t *tar.Writer, name string, size int64, at time.Time, r io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.Truncate(time.Second), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.CopyN(t, r, size)
	return err
}

// checkName refuses names that no backup has.
func checkName(name string) error {
	switch {
	case slices.Contains([]string{Database, Config, Policy, NoiseKey, DERPKey}, name):
		return nil
	case len(name) > maxName, !strings.HasPrefix(name, Data), path.Clean(name) != name, name+"/" == Data, strings.ContainsAny(name, "\x00\\"), !filepath.IsLocal(name):
		return fmt.Errorf("the entry %.80q does not belong into a backup", name)
	}
	return nil
}

// workFactor is the logarithm of the cost of trying a passphrase: age's own choice, about a second. Tests take less.
var workFactor = 18

// ErrPassphrase is returned for an encrypted backup without its passphrase.
var ErrPassphrase = errors.New("the backup is encrypted: its passphrase is needed")

// Read unpacks a backup into dir, which must exist, each entry under its own name, and returns what it is of. The
// passphrase of one that is not encrypted is not used. After an error some files may be there.
func Read(r io.Reader, dir, passphrase string) (*Manifest, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	if head, _ := b.Peek(len(ageHead)); string(head) == ageHead {
		if passphrase == "" {
			return nil, ErrPassphrase
		}
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, err
		}
		id.SetMaxWorkFactor(22)
		plain, err := age.Decrypt(b, id)
		if err != nil {
			var wrong *age.NoIdentityMatchError
			if errors.As(err, &wrong) {
				return nil, errors.New("the passphrase is wrong")
			}
			return nil, fmt.Errorf("the backup cannot be decrypted: %w", err)
		}
		b = bufio.NewReaderSize(plain, 64<<10)
	}
	if head, _ := b.Peek(2); string(head) == "\x1f\x8b" {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("this is not a backup: %w", err)
		}
		b = bufio.NewReaderSize(z, 64<<10)
	}
	m, err := unpack(tar.NewReader(b), dir)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, b); err != nil { // checksums stand at the end
		return nil, fmt.Errorf("the backup is damaged: %w", err)
	}
	return m, nil
}

const ageHead = "age-encryption.org/v1\n"

func unpack(t *tar.Reader, dir string) (*Manifest, error) {
	h, err := t.Next()
	if err != nil || h.Name != manifestName || h.Size > maxManifest {
		return nil, errors.New("this is not a backup of Skein")
	}
	text, err := io.ReadAll(io.LimitReader(t, maxManifest))
	if err != nil {
		return nil, fmt.Errorf("the backup ends early: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("this is not a backup of Skein: its manifest cannot be read: %w", err)
	}
	if m.Format != 1 {
		return nil, fmt.Errorf("the backup has format %d, and this Skein knows format 1: use a newer one", m.Format)
	}
	var seen []string
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the backup is damaged: %w", err)
		}
		if err := checkName(h.Name); err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || slices.Contains(seen, h.Name) || len(seen) >= maxFiles {
			return nil, fmt.Errorf("the entry %.80q does not belong into a backup", h.Name)
		}
		seen = append(seen, h.Name)
		if err := extract(t, filepath.Join(dir, filepath.FromSlash(h.Name))); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if !slices.Equal(seen, m.Files) {
		return nil, errors.New("the backup is not complete: other files are in it than its manifest says")
	}
	return &m, nil
}

func extract(r io.Reader, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
