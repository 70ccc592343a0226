package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func init() { workFactor = 8 }

func sample(t *testing.T) []File {
	t.Helper()
	dir := t.TempDir()
	var files []File
	for _, name := range []string{Config, Data + "sub/key.pem", Database, NoiseKey} {
		path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(path, []byte(strings.Repeat("contents of "+name+"\n", 5000)), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Name: name, Path: path})
	}
	return files
}

// What was written is read back, in each of the forms, and the file is nobody else's.
func TestRoundTrip(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "gzip": {Compress: true}, "age": {Passphrase: "correct horse"}, "both": {Compress: true, Passphrase: "correct horse"}} {
		t.Run(name, func(t *testing.T) {
			files := sample(t)
			path := filepath.Join(t.TempDir(), "b.tar")
			m := Manifest{Skein: "1", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Database: "sqlite"}
			if err := WriteFile(path, m, files, o, false); err != nil {
				t.Fatal(err)
			}
			if err := WriteFile(path, m, files, o, false); err == nil || !strings.Contains(err.Error(), "exists already") {
				t.Errorf("over an existing file: %v", err)
			}
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", fi.Mode(), err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if o.Passphrase != "" {
				if bytes.Contains(text, []byte("contents of")) {
					t.Error("the contents can be read without the passphrase")
				}
				if _, err := Read(bytes.NewReader(text), t.TempDir(), ""); !errors.Is(err, ErrPassphrase) {
					t.Errorf("without the passphrase: %v", err)
				}
				if _, err := Read(bytes.NewReader(text), t.TempDir(), "wrong"); err == nil || err.Error() != "the passphrase is wrong" {
					t.Errorf("with a wrong passphrase: %v", err)
				}
			}
			dir := t.TempDir()
			got, err := Read(bytes.NewReader(text), dir, o.Passphrase)
			if err != nil || len(got.Files) != len(files) || !got.Created.Equal(m.Created) {
				t.Fatalf("%+v %v", got, err)
			}
			for _, f := range files {
				want, _ := os.ReadFile(f.Path)
				is, err := os.ReadFile(filepath.Join(dir, f.Name))
				if err != nil || !bytes.Equal(want, is) {
					t.Errorf("%s: %v", f.Name, err)
				}
			}
			for _, cut := range []int{0, 1, 700, len(text) / 2, len(text) - 20} {
				if _, err := Read(bytes.NewReader(text[:cut]), t.TempDir(), o.Passphrase); err == nil && (o != Options{} || cut < len(text)-2000) {
					t.Errorf("the first %d bytes of %d are taken for a backup", cut, len(text))
				}
			}
			for _, at := range []int{len(text) / 3, len(text) / 2} {
				broken := slices.Clone(text)
				broken[at] ^= 1
				if _, err := Read(bytes.NewReader(broken), t.TempDir(), o.Passphrase); err == nil && o != (Options{}) {
					t.Errorf("byte %d is wrong and nobody sees it", at)
				}
			}
		})
	}
}

// archive makes a tar by hand.
func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		text := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname = ""
			h.Size = int64(len(text))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Nothing is written outside the folder, whatever an archive says.
func TestHostileArchives(t *testing.T) {
	manifest := tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Linkname: `{"format":1,"files":[]}`}
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "../evil", Linkname: "x"},
		{Typeflag: tar.TypeReg, Name: "/tmp/evil", Linkname: "x"},
		{Typeflag: tar.TypeReg, Name: "data/../../evil", Linkname: "x"},
		{Typeflag: tar.TypeReg, Name: "data/.", Linkname: "x"},
		{Typeflag: tar.TypeReg, Name: "other", Linkname: "x"},
		{Typeflag: tar.TypeReg, Name: "data//x", Linkname: "x"},
		{Typeflag: tar.TypeSymlink, Name: "data/link", Linkname: "/etc/passwd"},
		{Typeflag: tar.TypeLink, Name: "data/link", Linkname: "/etc/passwd"},
		{Typeflag: tar.TypeDir, Name: "data/dir"},
		{Typeflag: tar.TypeReg, Name: "data/unannounced", Linkname: "x"},
	} {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(archive(t, manifest, h)), dir, ""); err == nil {
			t.Errorf("%s is accepted", h.Name)
		}
		if left, _ := os.ReadDir(outer); len(left) != 1 {
			t.Errorf("%s: something was written beside the folder: %v", h.Name, left)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "no manifest": archive(t, tar.Header{Typeflag: tar.TypeReg, Name: Database, Linkname: "x"}),
		"newer": archive(t, tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Linkname: `{"format":2}`}),
		"twice": archive(t, tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Linkname: `{"format":1,"files":["data/a","data/a"]}`},
			tar.Header{Typeflag: tar.TypeReg, Name: "data/a", Linkname: "x"}, tar.Header{Typeflag: tar.TypeReg, Name: "data/a", Linkname: "y"}),
		"incomplete": archive(t, tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Linkname: `{"format":1,"files":["db.sqlite"]}`}),
	} {
		if _, err := Read(bytes.NewReader(b), t.TempDir(), ""); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	if err := Write(&b, Manifest{}, nil, Options{}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(ageHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = Read(bytes.NewReader(b), dir, "x")
		if left, _ := os.ReadDir(outer); len(left) != 1 {
			t.Errorf("something was written beside the folder: %v", left)
		}
	})
}
