package h2

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// From a header block to an http.Request, RFC 9113 section 8.3.1.

// pseudo reports whether it is a pseudo-header field (RFC 9113 section 8.3).
func (f field) pseudo() bool { return strings.HasPrefix(f.name, ":") }

// valid reports whether the field may occur in HTTP/2 (RFC 9113 sections 8.2.1 and 8.2.2).
func (f field) valid() bool {
	for i := range len(f.name) {
		if 'A' <= f.name[i] && f.name[i] <= 'Z' {
			return false
		}
	}
	switch f.name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false
	case "te":
		return f.value == "trailers"
	}
	return httpguts.ValidHeaderFieldName(f.name) && httpguts.ValidHeaderFieldValue(f.value)
}

// newRequest is the request that l describes, without a body and a context yet; end says that no body follows. It is not ok
// if the request is malformed (RFC 9113 section 8.1.1).
func newRequest(l *fieldList, end bool) (r *http.Request, ok bool) {
	r = &http.Request{Proto: "HTTP/2.0", ProtoMajor: 2, Body: http.NoBody}
	if l.tooLarge {
		return r, true // it will not be looked at
	}
	pseudo := map[string]*string{":method": &r.Method, ":path": &r.RequestURI, ":authority": &r.Host, ":scheme": new(string)}
	fields := l.fields
	for len(fields) > 0 && fields[0].pseudo() {
		f := fields[0]
		into := pseudo[f.name]
		if into == nil || f.value == "" && f.name != ":authority" { // unknown, empty, or there for the second time
			return nil, false
		}
		*into = f.value
		delete(pseudo, f.name)
		fields = fields[1:]
	}
	if !httpguts.ValidHeaderFieldName(r.Method) || !httpguts.ValidHostHeader(r.Host) || strings.Contains(r.Host, "@") {
		return nil, false
	}
	missing := len(pseudo)
	if _, none := pseudo[":authority"]; none {
		missing--
	}
	if r.Method == http.MethodConnect { // section 8.5
		if missing != 2 || r.Host == "" {
			return nil, false
		}
		r.URL, r.RequestURI = &url.URL{Host: r.Host}, r.Host
	} else {
		u, err := url.ParseRequestURI(r.RequestURI)
		if missing != 0 || err != nil {
			return nil, false
		}
		r.URL = u
	}
	return r, addFields(r, fields) && setLength(r, end)
}

// addFields adds the ordinary fields of a request.
func addFields(r *http.Request, fields []field) bool {
	r.Header = make(http.Header, len(fields))
	values := make([]string, len(fields))
	for i, f := range fields {
		if !f.valid() {
			return false
		}
		switch key := http.CanonicalHeaderKey(f.name); {
		case key == "Host": // section 8.3.1
			if r.Host == "" {
				r.Host = f.value
			}
		case key == "Cookie" && r.Header["Cookie"] != nil: // section 8.2.3
			r.Header["Cookie"][0] += "; " + f.value
		case r.Header[key] == nil:
			values[i] = f.value
			r.Header[key] = values[i : i+1 : i+1]
		default:
			r.Header[key] = append(r.Header[key], f.value)
		}
	}
	return true
}

// setLength sets r.ContentLength: -1 if there is a body whose length is not told.
func setLength(r *http.Request, end bool) bool {
	told := r.Header["Content-Length"]
	switch {
	case len(told) > 1:
		return false
	case len(told) == 1:
		n, err := strconv.ParseUint(told[0], 10, 63)
		r.ContentLength = int64(n)
		return err == nil && !(end && n != 0)
	case !end:
		r.ContentLength = -1
	}
	return true
}
