package tap

import "fmt"

// Direction is who speaks on a connection.
type Direction uint8

const (
	Requests Direction = iota // the side that has connected
	Answers                   // the side that was connected to
)

func (d Direction) String() string { return [...]string{"requests", "answers"}[d] }

// Rule names what a message has departed from.
type Rule string

const (
	StartLine     Rule = "start line"       // METHOD icap://authority/path ICAP/1.0, or ICAP/1.0 CODE reason
	LineEnd       Rule = "line end"         // CR LF, and no other CR or LF
	EmptyLine     Rule = "empty line"       // none before a message
	FieldForm     Rule = "field form"       // Name: value
	FieldTwice    Rule = "field twice"      // Host, Encapsulated, Preview and ISTag stand once
	HeadSize      Rule = "head size"        // at most maxHead bytes
	Host          Rule = "host"             // is there, and says what the request line says
	HopByHop      Rule = "hop-by-hop"       // fields of one connection stay there
	Allow         Rule = "allow"            // 204 and 206, in this order
	PreviewForm   Rule = "preview form"     // decimal digits, on a request that may have a body
	PreviewSize   Rule = "preview size"     // no more bytes than announced
	BehindPreview Rule = "behind a preview" // nothing before a 100
	Encapsulated  Rule = "encapsulated"     // name=offset, name=offset
	Sections      Rule = "sections"         // the lists that RFC 3507 4.4.1 allows, from 0 and increasing
	Blocks        Rule = "blocks"           // each head ends with its own empty line, exactly at the next offset
	ChunkSize     Rule = "chunk size"       // lower-case hex without zeros in front
	ChunkLimit    Rule = "chunk limit"      // no larger than configured
	ChunkEnd      Rule = "chunk end"        // CR LF behind the data
	Extension     Rule = "chunk extension"  // none
	LastChunk     Rule = "last chunk"       // 0, or 0; ieof at the end of a preview, or 0; use-original-body=N in a 206
	Trailer       Rule = "trailer"          // none
	Pipelined     Rule = "pipelined"        // no request before the answer to the one before is complete
	Surplus       Rule = "surplus bytes"    // no answer without a request
	Continue      Rule = "100 Continue"     // exactly that, once, and only to a preview that waits for it
	NotAllowed    Rule = "not allowed"      // 204 and 206 where the request takes them
	ISTag         Rule = "istag"            // in each answer, quoted, at most 32 bytes
	Date          Rule = "date"             // if there is one, as HTTP writes it
)

// Finding is one departure from a rule.
type Finding struct {
	Connection int // of the tap, from 0
	Direction  Direction
	Offset     int64 // in this direction of the connection: of the message or chunk that departs
	Rule       Rule
	Detail     string
}

func (f Finding) String() string {
	return fmt.Sprintf("connection %d, %v, byte %d: %s: %s", f.Connection, f.Direction, f.Offset, f.Rule, f.Detail)
}
