// Package icap is the wire format of ICAP (RFC 3507): heads, Encapsulated lists and chunked bodies, parsed as their
// bytes arrive. It does no I/O, keeps no body bytes and, once warm, allocates nothing.
//
// A message goes through four steps, each of which takes what the socket gave, however it was cut:
//
//	HeadScanner      finds the end of the ICAP head and refuses bad bytes as they come
//	Request.Parse    (or Response.Parse) reads the head; all slices alias it
//	BlockScanner     finds the end of the encapsulated HTTP heads
//	BodyReader       decodes the chunks and says what to send on for them
//
// What is sent on never is framing that was merely tolerated. AppendFields, Encapsulated.AppendTo and BodyReader.Next write
// the canonical form, so that the next reader cannot understand the stream in another way than this package did.
//
// Requests are read strictly, because a client may try to smuggle one; responses are read with the tolerance that
// real servers need. Faults of the peer are *ProtocolError; an input that merely ends early is ErrIncomplete.
package icap
