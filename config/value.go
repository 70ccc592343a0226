package config

import (
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written with days, weeks and years as well: "90s", "1d12h", "2w", "1y" (365 days), "0".
type Duration time.Duration

var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"y", 365 * 24 * time.Hour}, {"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour},
}

const durationForm = "a time such as 90s, 30m, 12h, 180d, 2w, 1y or 0"

// ParseDuration reads one or more numbers with units: y, w, d, and those of time.ParseDuration. Negative times are an error.
func ParseDuration(s string) (Duration, error) {
	bad := fmt.Errorf("%q: want %s", s, durationForm)
	rest := s
	var total time.Duration
	for _, u := range durationUnits {
		number, tail, ok := strings.Cut(rest, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n > uint64((math.MaxInt64-total)/u.unit) {
			return 0, bad
		}
		total += time.Duration(n) * u.unit
		rest = tail
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 || d > math.MaxInt64-total {
			return 0, bad
		}
		total += d
	} else if s == "" {
		return 0, bad
	}
	return Duration(total), nil
}

// String is the shortest form that ParseDuration reads back.
func (d Duration) String() string {
	if d == 0 {
		return "0"
	}
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range durationUnits[2:] { // years and weeks read badly in sums
		if n := rest / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest %= u.unit
		}
	}
	if rest > 0 {
		s := rest.String() // 1h0m0s
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		b.WriteString(s)
	}
	return b.String()
}

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// FileMode is a mode written in octal: 0660.
type FileMode fs.FileMode

func parseFileMode(s string) (FileMode, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("%q: want a file mode in octal, such as 0660", s)
	}
	return FileMode(n), nil
}

func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// parsePrefix reads a network; "" is the zero value.
func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: want a network such as 100.64.0.0/10", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits set behind the /%d: want %s", s, p.Bits(), p.Masked())
	}
	return p, nil
}

// parseAddr reads a single address as a network of one.
func parseAddr(s string) (netip.Prefix, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q: want an address or a network such as 10.0.0.0/8", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}
