package health

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"icapgate/icap"
)

// maxBody bounds what is read of the body of an answer, in bytes.
const maxBody = 1 << 20

var (
	// errSilentEnd: the server has ended the connection before the first byte of an answer.
	errSilentEnd = errors.New("the server closed the connection without an answer")
	// errTooLarge: the body goes on beyond maxBody.
	errTooLarge = errors.New("the body of the answer is larger than 1 MiB")
)

// answer is what a server answers to one request. It reads no more than its bounds allow, whatever comes: heads as icap.HeadScanner and
// icap.BlockScanner have them, maxBody of a body. The zero value is ready.
type answer struct {
	icap.Response
	blocks []byte // encapsulated heads
	body   []byte // without its framing

	rest []byte // received behind what has been read; never compacted, since the fields above alias what is before it
	read int    // bytes received in all
}

// readHead reads and parses the next head: an interim one, or the final one. What the answer had before is void.
func (a *answer) readHead(r io.Reader) error {
	scanner := icap.HeadScanner{LenientLF: true, Response: true}
	for {
		start, end, err := scanner.Scan(a.rest)
		if err == nil {
			head := a.rest[start:end]
			a.rest, a.blocks, a.body = a.rest[end:], nil, nil
			return a.Parse(head)
		}
		if err != icap.ErrIncomplete {
			return err
		}
		if err := a.more(r); err != nil {
			return err
		}
	}
}

// readMessage reads the encapsulated heads and the body behind the head. errTooLarge leaves the body as far as it was read.
func (a *answer) readMessage(r io.Reader) error {
	var blocks icap.BlockScanner
	blocks.Reset(a.Encapsulated, true)
	for {
		n, err := blocks.Scan(a.rest)
		if err == nil {
			a.blocks, a.rest = a.rest[:n], a.rest[n:]
			break
		}
		if err != icap.ErrIncomplete {
			return err
		}
		if err := a.more(r); err != nil {
			return err
		}
	}
	a.Encapsulated = blocks.Encapsulated
	if !a.Encapsulated.HasBody() {
		return nil
	}
	var body icap.BodyReader
	body.Reset(icap.BodyConfig{Preview: -1, Response: true, Trailers: a.Trailers})
	for body.End() == icap.EndNone {
		if len(a.rest) == 0 {
			if err := a.more(r); err != nil {
				return err
			}
		}
		data, n, err := body.NextData(a.rest)
		if err != nil {
			return err
		}
		a.rest = a.rest[n:]
		if len(a.body)+len(data) > maxBody {
			a.body = append(a.body, data[:maxBody-len(a.body)]...)
			return errTooLarge
		}
		a.body = append(a.body, data...)
	}
	return nil
}

// more receives what there is; an end is an error.
func (a *answer) more(r io.Reader) error {
	const step = 4 << 10
	if cap(a.rest)-len(a.rest) < step {
		a.rest = append(make([]byte, 0, 2*len(a.rest)+step), a.rest...)
	}
	n, err := r.Read(a.rest[len(a.rest):cap(a.rest)])
	a.rest = a.rest[:len(a.rest)+n]
	a.read += n
	switch {
	case n > 0:
		return nil
	case a.read == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		return errSilentEnd
	}
	return err
}

// isFull says whether a server says by its status that it is full, not dead. 506: busy, of Trend Micro.
func isFull(status int) bool { return status == 503 || status == 506 }

// describe says what was answered to a request, for a message.
func describe(request string, status int) string {
	if text := icap.StatusText(status); text != "" {
		return fmt.Sprintf("%s: %d %s", request, status, text)
	}
	return fmt.Sprintf("%s: %d", request, status)
}
