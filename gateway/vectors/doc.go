// Package vectors holds the requests by which the reading of ICAP is tested: what clients send, right and wrong, byte for byte. The tests of
// package gateway play each of them, and tests against real servers start from them.
package vectors

import "strings"

// Blocks of requests to the service /r; "¶" stands for CRLF.
const (
	G  = "GET / HTTP/1.1¶Host: a¶¶"  // 27 bytes
	P  = "POST / HTTP/1.1¶Host: a¶¶" // 28 bytes
	S  = "HTTP/1.1 200 OK¶¶"         // 19 bytes
	RL = "REQMOD icap://gw/r ICAP/1.0¶Host: gw¶"
	PL = "RESPMOD icap://gw/r ICAP/1.0¶Host: gw¶"
	OL = "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶"

	Chunks  = "5¶hello¶0¶¶"
	ReqNull = "Encapsulated: req-hdr=0, null-body=27¶¶" + G
	ReqBody = "Encapsulated: req-hdr=0, req-body=28¶¶" + P
	ResBody = "Encapsulated: req-hdr=0, res-hdr=27, res-body=46¶¶" + G + S

	V04 = RL + ReqNull
	V05 = RL + ReqBody + Chunks
	V08 = PL + ResBody + Chunks
)

// Text is what a vector stands for.
func Text(vector string) string { return strings.ReplaceAll(vector, "¶", "\r\n") }

// Request is a vector: what a client sends.
type Request struct {
	Name   string
	Stream string // with ¶ for CRLF
	Want   string // what a server gets of it, but for its address; "": nothing
	Status int    // of the gateway's own answer to the rest; 0: none
}

// Requests are all vectors of requests.
func Requests() (all []Request) {
	for _, some := range [][]Request{Valid(), MalformedHeads(), MalformedLists(), MalformedChunks(), FaultsBehind(), UnknownMethods()} {
		all = append(all, some...)
	}
	return all
}
