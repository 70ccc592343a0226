package api

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// Page says which part of a list is asked for. Without it a list is told as a whole, in its own order; with it rows that come or go
// meanwhile neither shift a page nor repeat a row.
type Page struct {
	Limit int    `json:"-" query:"limit" minimum:"1" maximum:"1000"` // how many at the most; without it all
	After string `json:"-" query:"after"`                            // the nextPage of the answer before
}

// cut is the part of rows that p asks for, and the After of the next page; empty: there is none. key orders rows, none of which have
// the same.
func cut[T any](rows []T, p Page, key func(T) string) (part []T, next string, err error) {
	if p == (Page{}) {
		return rows, "", nil
	}
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	if p.After != "" {
		last, err := base64.RawURLEncoding.DecodeString(p.After)
		if err != nil {
			return nil, "", notANextPage(p.After)
		}
		rows = slices.DeleteFunc(rows, func(row T) bool { return key(row) <= string(last) })
	}
	if p.Limit > 0 && len(rows) > p.Limit {
		rows = rows[:p.Limit]
		next = base64.RawURLEncoding.EncodeToString([]byte(key(rows[p.Limit-1])))
	}
	return rows, next, nil
}

func notANextPage(after string) error {
	return tailnet.Errorf(tailnet.Invalid, "after=%q is not the nextPage of an answer", clip(after))
}

// byNumber is a key of cut for rows that are ordered by a number that is not negative.
func byNumber[N ~int64](n N) string { return fmt.Sprintf("%019d", int64(n)) }

// byTime is a key of cut for rows that are ordered by when they were made.
func byTime(t time.Time, id string) string { return byNumber(max(t.UnixNano(), 0)) + " " + id }

// chosen reports whether a row with the fact is fits a filter that may ask for it.
func chosen(want *bool, is bool) bool { return want == nil || *want == is }

// values are the parameters of a request type as a query.
func values(filter any) url.Values {
	v := reflect.ValueOf(filter)
	out := url.Values{}
	for _, p := range paramsOf(v.Type()) {
		f := v.FieldByIndex(p.field.Index)
		if f.IsZero() {
			continue
		}
		switch x := f.Interface().(type) {
		case []string:
			out[p.name] = x
		case *bool:
			out.Set(p.name, strconv.FormatBool(*x))
		case time.Time:
			out.Set(p.name, x.UTC().Format(time.RFC3339))
		case *time.Time:
			out.Set(p.name, x.UTC().Format(time.RFC3339))
		default:
			out.Set(p.name, fmt.Sprint(x))
		}
	}
	return out
}
