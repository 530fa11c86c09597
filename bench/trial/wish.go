package main

import (
	"bytes"
	"fmt"
	"time"

	"icapgate/bench/dlpstub"
)

// A request can wish how servers treat it, so that a trial knows which answers are right.
const (
	wishHeader = "X-Wish"
	idHeader   = "x-trial-id" // of answers: the id of their request
)

// wish is how a request wants to be treated.
type wish struct {
	what   wishKind
	number int    // of what
	server string // that treats it so, the others as usual; "": all
}

type wishKind string

const (
	asUsual  wishKind = "usual"
	echoed   wishKind = "echo"     // the message comes back
	busy     wishKind = "busy"     // 503
	late     wishKind = "late"     // after number ms
	early    wishKind = "early"    // before the body
	asked    wishKind = "continue" // the rest is asked for after a preview, and the answer comes number ms later
	closing  wishKind = "close"    // Connection: close
	cut      wishKind = "cut"      // after number bytes of the answer
	noAnswer wishKind = "noanswer" // the connection is reset in place of it
	slowly   wishKind = "slowly"   // the body is read with number bytes per second
)

func (w wish) String() string { return fmt.Sprintf("%s %d %s", w.what, w.number, w.server) }

// parseWish returns the wish in an ICAP head.
func parseWish(head []byte) (w wish) {
	_, rest, _ := bytes.Cut(head, []byte("\r\n"+wishHeader+": "))
	line, _, _ := bytes.Cut(rest, []byte("\r\n"))
	_, _ = fmt.Sscan(string(line), &w.what, &w.number, &w.server)
	return w
}

// concerns says whether a server fulfils the wish.
func (w wish) concerns(server string) bool { return w.server == "" || w.server == server }

// obey returns what makes a server fulfil wishes. All its answers name their request.
func obey(server string) func(*dlpstub.Request, *dlpstub.Treatment) {
	return func(r *dlpstub.Request, t *dlpstub.Treatment) {
		t.Fields = idHeader + ": " + requestID(r.Head) + "\r\n"
		w := parseWish(r.Head)
		if !w.concerns(server) {
			return
		}
		switch w.what {
		case echoed:
			t.Mode = dlpstub.Echo
		case busy:
			t.Status = 503
		case late:
			t.Latency = time.Duration(w.number) * time.Millisecond
		case early:
			t.EarlyAnswer = true
		case asked:
			t.Continue = true
			t.Latency += time.Duration(w.number) * time.Millisecond
		case closing:
			t.Close = true
		case cut:
			t.Mode, t.Cut = dlpstub.Echo, w.number
		case noAnswer:
			t.Cut = dlpstub.NoAnswer
		case slowly:
			t.ReadRate = int64(w.number)
		}
	}
}
