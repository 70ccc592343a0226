package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Bounds of event streams.
const (
	maxStreams   = 100 // at once
	ringSize     = 1024
	eventPage    = 200 // entries of the audit log that are read at once
	lookGap      = 100 * time.Millisecond
	heartbeat    = 15 * time.Second // between signs of life of a stream that has nothing to tell
	eventTimeout = 30 * time.Second // for a reader to take what is written
	eventRetry   = 3 * time.Second  // after which a browser comes again
)

// EventsOptions is what Events is made of. State and AuditLog are required.
type EventsOptions struct {
	State *state.State
	// AuditLog are the entries that q chooses (auth.Auth.AuditLog).
	AuditLog func(ctx context.Context, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error)

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

// Events follows what happens for all streams of a server. It reads only while there are streams. It is safe for concurrent use.
type Events struct {
	o     EventsOptions
	begin chan struct{} // one slot: the first stream has come
	over  chan struct{} // closed when Run has ended

	mu      sync.Mutex
	streams int
	live    chan struct{}    // guarded by mu: closed once the ring is being filled; new whenever it is not
	more    chan struct{}    // guarded by mu: closed when there is more in the ring, or a stream shall look for another reason
	ring    [ringSize]*Event // guarded by mu: event number i is at i % ringSize
	next    uint64           // guarded by mu: number of the next event
	first   uint64           // guarded by mu: number of the oldest event that counts
	pos     tailnet.AuditPos // guarded by mu: of the newest entry that is in the ring or before it
}

// NewEvents returns an Events, which serves streams while Run runs.
func NewEvents(o EventsOptions) *Events {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Events{o: o, begin: make(chan struct{}, 1), over: make(chan struct{}), live: make(chan struct{}), more: make(chan struct{})}
}

// Run follows what happens until ctx ends; then all streams end.
func (e *Events) Run(ctx context.Context) {
	defer close(e.over)
	for ctx.Err() == nil {
		select {
		case <-e.begin:
			e.follow(ctx)
		case <-ctx.Done():
		}
	}
}

// join counts one more stream, and waits until events are followed.
func (e *Events) join(ctx context.Context) error {
	e.mu.Lock()
	if e.streams >= maxStreams {
		e.mu.Unlock()
		return tailnet.Errorf(tailnet.Exhausted, "there are %d event streams already: end one, or try again later", maxStreams)
	}
	e.streams++
	live := e.live
	e.mu.Unlock()
	select {
	case e.begin <- struct{}{}:
	default:
	}
	select {
	case <-live:
		select {
		case <-e.over:
		default:
			return nil
		}
		e.leave()
		return state.ErrClosed
	case <-ctx.Done():
		e.leave()
		return ctx.Err()
	case <-e.over:
		e.leave()
		return state.ErrClosed
	}
}

func (e *Events) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.streams--
}

// idle reports whether there is no stream; then the ring does not count any more.
func (e *Events) idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.streams > 0 {
		return false
	}
	e.live = make(chan struct{})
	clear(e.ring[:])
	e.first = e.next
	return true
}

// follow fills the ring while there are streams.
func (e *Events) follow(ctx context.Context) {
	from := e.o.State.Snapshot()
	var pos tailnet.AuditPos
	for ctx.Err() == nil {
		es, err := e.o.AuditLog(ctx, tailnet.AuditQuery{Limit: 1})
		if err == nil {
			if len(es) > 0 {
				pos = es[0].Pos()
			}
			break
		}
		if !e.pause(ctx, "the audit log cannot be read for event streams; it is tried again", err) {
			return
		}
	}
	e.mu.Lock()
	e.pos = pos
	close(e.live)
	e.mu.Unlock()
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for !e.idle() {
		select {
		case <-from.Superseded():
		case <-tick.C:
			continue
		case <-ctx.Done():
			return
		}
		to := e.o.State.Snapshot()
		if to.Rev != from.Rev {
			if err := e.readLog(ctx); err != nil {
				if !e.pause(ctx, "the audit log cannot be read for event streams; it is tried again", err) {
					return
				}
				continue
			}
		}
		e.put(eventsBetween(from, to, e.o.Now())...)
		from = to
		select { // what happens all the time need not be looked at each time
		case <-time.After(lookGap):
		case <-ctx.Done():
			return
		}
	}
}

// pause waits a second after a failure, and reports whether to go on.
func (e *Events) pause(ctx context.Context, what string, err error) bool {
	if ctx.Err() == nil {
		e.o.Log.Warn(what, "err", err)
	}
	select {
	case <-time.After(time.Second):
		return true
	case <-ctx.Done():
		return false
	}
}

// readLog puts what is new in the audit log into the ring.
func (e *Events) readLog(ctx context.Context) error {
	for {
		e.mu.Lock()
		pos := e.pos
		e.mu.Unlock()
		es, err := e.o.AuditLog(ctx, tailnet.AuditQuery{After: &pos, Limit: eventPage})
		if err != nil {
			return err
		}
		var out []*Event
		for _, x := range es {
			out = append(out, eventsOfEntry(x)...)
		}
		if len(es) > 0 {
			e.mu.Lock()
			e.pos = es[len(es)-1].Pos()
			e.mu.Unlock()
			e.put(out...)
		}
		if len(es) < eventPage {
			return nil
		}
	}
}

// put appends to the ring and wakes the streams, also if there is nothing to put: what a stream may tell may have changed.
func (e *Events) put(events ...*Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range events {
		e.ring[e.next%ringSize] = x
		e.next++
	}
	if e.next-e.first > ringSize {
		e.first = e.next - ringSize
	}
	close(e.more)
	e.more = make(chan struct{})
}

// at is where a stream begins that has just joined: the number of the next event, and the newest entry before it.
func (e *Events) at() (uint64, tailnet.AuditPos) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.next, e.pos
}

// take are up to eventPage events from number on, and the number behind them. missed: some are not there any more. more is closed
// when there are others.
func (e *Events) take(number uint64) (out []*Event, next uint64, missed bool, more <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if number < e.first {
		return nil, e.next, true, e.more
	}
	for ; number < e.next && len(out) < eventPage; number++ {
		out = append(out, e.ring[number%ringSize])
	}
	return out, number, false, e.more
}

// eventStream is one caller's.
type eventStream struct {
	s         *server
	choice    eventChoice
	since     *tailnet.AuditPos // begin behind it; nil: with what happens from now on
	sinceTime time.Time         // and not before
	once      bool

	may  map[string]bool  // by kind, as the caller's scopes were when they were looked at last
	told tailnet.AuditPos // of the last entry that was told, or passed over

	w  io.Writer
	rc *http.ResponseController
}

// allow takes note of what p may know of. The error is Denied if that is nothing of what was asked for.
func (st *eventStream) allow(p *auth.Principal) error {
	st.may = map[string]bool{}
	any := false
	var denied error
	for kind, scope := range EventKinds {
		err := p.Allow(scope)
		st.may[kind] = err == nil
		asked := len(st.choice.types) == 0
		for _, t := range st.choice.types {
			asked = asked || eventKind(t) == kind
		}
		if asked && err == nil {
			any = true
		} else if asked {
			denied = err
		}
	}
	if any || denied == nil {
		return nil
	}
	if len(st.choice.types) == 0 {
		return tailnet.Errorf(tailnet.Denied, "this key may read nothing that there are events of: it needs a scope such as %s", auth.Read(auth.ScopeDevices))
	}
	return denied
}

// recheck looks again at who is listening: keys are revoked, and roles taken away.
func (st *eventStream) recheck(r *http.Request) error {
	p := auth.PrincipalOf(r.Context())
	if g := st.s.Gate; g != nil {
		secret, err := secretOf(r)
		if err != nil {
			return err
		}
		if p, err = g.auth.Authenticate(r.Context(), secret); err != nil {
			return err
		}
	}
	return st.allow(p)
}

// endReason is the After of EventEnded.
type endReason struct {
	Reason tailnet.Code `json:"reason"`
}

// errOver ends a stream that has told everything.
var errOver = errors.New("everything is told")

// ServeHTTP tells events until the caller goes, may not know of them any more, or the server ends.
func (st *eventStream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hub := st.s.Events
	defer hub.leave()
	st.w, st.rc = w, http.NewResponseController(w)
	_ = st.rc.SetReadDeadline(time.Time{}) // that of the gate is for the request, which is here
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // nginx would gather
	w.WriteHeader(http.StatusOK)
	number, pos := hub.at()
	st.told = pos
	err := st.write(fmt.Sprintf("retry: %d\n\n", eventRetry.Milliseconds()))
	if err == nil && st.since != nil {
		err = st.begin(r.Context(), pos)
	}
	if err == nil && st.once {
		err = errOver
	}
	if err == nil {
		err = st.sendAt(&Event{ID: st.told.String(), Time: timestamp(st.s.Now()), Type: EventBegan, Message: "what follows happens now"}, true)
	}
	if err == nil {
		err = st.follow(r, number)
	}
	if te := new(tailnet.Error); errors.As(err, &te) && r.Context().Err() == nil {
		_ = st.send(&Event{Time: timestamp(st.s.Now()), Type: EventEnded, Message: te.Message, After: anyJSON(endReason{te.Code})})
	}
	_ = st.rc.SetWriteDeadline(time.Time{})
}

// begin tells what is behind st.since in the audit log, up to now.
func (st *eventStream) begin(ctx context.Context, now tailnet.AuditPos) error {
	from := *st.since
	if now.Rev < from.Rev {
		st.told = now
		return st.missed("the event " + from.String() + " is not in this server's log: it was restored, or is another one")
	}
	st.told = from
	return st.replay(ctx, from)
}

// replay tells what is behind pos in the audit log.
func (st *eventStream) replay(ctx context.Context, pos tailnet.AuditPos) error {
	for {
		es, err := st.s.Auth.AuditLog(ctx, tailnet.AuditQuery{After: &pos, Since: st.sinceTime, Limit: eventPage})
		if err != nil {
			return &tailnet.Error{Code: tailnet.Unavailable, Message: "what happened before cannot be read at the moment", Cause: err}
		}
		for _, e := range es {
			if err := st.tell(eventsOfEntry(e)); err != nil {
				return err
			}
			pos = e.Pos()
		}
		if len(es) < eventPage {
			return nil
		}
	}
}

// follow tells what is in the ring from number on, and goes on.
func (st *eventStream) follow(r *http.Request, number uint64) error {
	hub := st.s.Events
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		events, next, missed, more := hub.take(number)
		number = next
		if missed {
			if err := st.missed("you read too slowly: what was committed follows, but who came online or went may be left out"); err != nil {
				return err
			}
			if err := st.replay(r.Context(), st.told); err != nil {
				return err
			}
			continue
		}
		if err := st.recheck(r); err != nil {
			return err
		}
		if err := st.tell(events); err != nil {
			return err
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-more:
		case <-beat.C:
			if err := st.write(": \n\n"); err != nil {
				return err
			}
		case <-r.Context().Done():
			return r.Context().Err()
		case <-hub.over:
			return state.ErrClosed
		}
	}
}

// tell sends those of events that were asked for and have not been told. The id stands at the last event of an entry only: a stream
// that breaks off between two is told both again.
func (st *eventStream) tell(events []*Event) error {
	for i, e := range events {
		var pos tailnet.AuditPos
		if e.ID != "" {
			pos, _ = tailnet.ParseAuditPos(e.ID) // we have written it
			if !behind(pos, st.told) {
				continue
			}
		}
		last := e.ID != "" && (i+1 == len(events) || events[i+1].ID != e.ID)
		if st.choice.wants(e) && st.may[eventKind(e.Type)] {
			if err := st.sendAt(e, last); err != nil {
				return err
			}
		}
		if last {
			st.told = pos
		}
	}
	return nil
}

// behind reports whether a stands behind b in the audit log.
func behind(a, b tailnet.AuditPos) bool { return a.Rev > b.Rev || a.Rev == b.Rev && a.Seq > b.Seq }

func (st *eventStream) missed(why string) error {
	return st.send(&Event{Time: timestamp(st.s.Now()), Type: EventMissed, Message: why})
}

func (st *eventStream) send(e *Event) error { return st.sendAt(e, false) }

// sendAt writes e as a server-sent event; with id, it is where to go on after it.
func (st *eventStream) sendAt(e *Event, id bool) error {
	var b bytes.Buffer
	if id {
		fmt.Fprintf(&b, "id: %s\n", e.ID)
	}
	fmt.Fprintf(&b, "event: %s\ndata: ", strings.Map(oneLine, e.Type))
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	x := *e
	if x.Before == nil {
		x.Before = json.RawMessage("null")
	}
	if x.After == nil {
		x.After = json.RawMessage("null")
	}
	if err := enc.Encode(&x); err != nil { // ends with a newline
		return fmt.Errorf("writing an event as JSON: %w", err)
	}
	b.WriteByte('\n')
	return st.write(b.String())
}

// oneLine leaves out what would end a line of the stream.
func oneLine(r rune) rune {
	if r == '\n' || r == '\r' {
		return -1
	}
	return r
}

func (st *eventStream) write(text string) error {
	_ = st.rc.SetWriteDeadline(time.Now().Add(eventTimeout)) // where it cannot be set, the caller's context ends the stream
	if _, err := io.WriteString(st.w, text); err != nil {
		return err
	}
	return st.rc.Flush()
}

// maxEventLine is how long a line of a stream may be.
const maxEventLine = 4 << 20

// silence is how long a stream may be silent before it is taken for dead.
const silence = 4 * heartbeat

// stream reads server-sent events; once says that it ends in good order.
func (c *Client) stream(ctx context.Context, t target, once bool, do func(*Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+string(t), nil)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	endless := *c.http
	endless.Timeout = 0
	watch := time.AfterFunc(silence, cancel)
	defer watch.Stop()
	res, err := endless.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, maxBody))
		return errorOf(res.StatusCode, b)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		watch.Reset(silence)
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		e := new(Event)
		if err := json.Unmarshal([]byte(data), e); err != nil {
			return &tailnet.Error{Code: tailnet.Internal, Message: fmt.Sprintf("the server at %s told something else than an event: %v", c.name, err), Cause: err}
		}
		if e.Type == EventEnded {
			end := endReason{tailnet.Unavailable}
			_ = json.Unmarshal(e.After, &end) // of another version, perhaps
			return tailnet.Errorf(end.Reason, "the server ended the stream: %s", e.Message)
		}
		if err := do(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil || !once {
		return tailnet.Errorf(tailnet.Unavailable, "the stream of the server at %s broke off", c.name)
	}
	return nil
}
