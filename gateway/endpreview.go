package gateway

import (
	"slices"
	"strconv"

	"icapgate/icap"
)

// This file ends previews for servers that can't do them (preview: off of their pool): they take a preview for the whole body, say. To its client the
// gateway is a server that wants to see all of it; to a server it is a client that sends no previews. So a server never sees a Preview field, nor "ieof",
// nor a last chunk with more behind it (icap.BodyConfig.Plain).
//
// What the client may get as an answer is said by what it has sent (RFC 3507 4.5, 4.6; takes204): with Allow: 204 a 204 at any time; without it only in
// answer to its preview, which is over with the 100. Allow goes to the server as the client has sent it, because when the server answers, the 100 has been
// said, and a 204 is legal for both or for neither. Only if the preview was all (ieof, or a null-body), no 100 is ever said: then the client takes
// a 204 that the server, which sees no preview, would not know to be allowed; so it is told.

// awaitsPreview says whether the first attempt has to wait until the preview is in. A server that answers before would answer a client which then sends no more,
// and wait for the rest itself. It also means that one is not occupied by a client that is slow with its preview.
func (t *transaction) awaitsPreview() bool { return t.endsPreview && t.preview >= 0 }

// endPreview says the 100 to a client that waits for it, once a server takes the request: not before, so that as long as there is none, a 204 is possible for any client
// (on_unavailable: allow), and the rest of what waits in the queue stays with its client.
func (t *transaction) endPreview() {
	if t.endsPreview && t.s.request == requestHeld {
		t.sendContinue()
	}
}

// wasAllPreview says whether the whole request came as a preview of which the server knows nothing, and the client can take a 204 only for that reason.
func (t *transaction) wasAllPreview() bool {
	return t.endsPreview && t.requestDone && !t.continued && t.allow&(icap.Allow204|icap.Allow206) == 0
}

// unpreview makes a plain request of one that is held with its preview, which is in: since it came, a reload has said that servers can't do previews.
func (t *transaction) unpreview() {
	b := t.held.B
	if t.previewEnd > 0 {
		b = slices.Delete(b, t.previewEnd-len(lastChunk), t.previewEnd)
	} else {
		b = append(b[:len(b)-len(lastOfPreview)], lastChunk...)
	}
	field := len("Preview: \r\n") + len(strconv.Itoa(t.preview))
	end := t.blocks - len(t.list.AppendTo(nil)) - len("\r\n") // Encapsulated is the only one behind it
	t.held.B = slices.Delete(b, end-field, end)
	t.blocks -= field
	t.endsPreview, t.preview, t.previewEnd = true, -1, 0
}
