package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"icapgate/icap"
)

// SendConfig says what Send sends, and where.
type SendConfig struct {
	Target  Target
	TLS     *tls.Config // of TLSOptions.Config
	Message Message
	File    string        // whose content is the body; "": a message without a body
	Output  string        // file for the body that comes back; "": none
	Timeout time.Duration // for the connection, and for every wait for bytes
}

// Send sends one request and prints the exchange, its timing and the verdict to w. It returns the ICAP status of the final
// answer; errors are of type *Error, except those of
// writing the output.
func Send(ctx context.Context, w io.Writer, cfg SendConfig) (status int, err error) {
	x := &exchange{w: w, output: cfg.Output, sent: sha256.New(), received: sha256.New()}
	var body io.Reader
	var size int64
	if cfg.File != "" {
		f, n, err := openBody(cfg.File)
		if err != nil {
			return 0, &Error{Input, err}
		}
		defer f.Close()
		body, size = f, n
		x.content = io.NewSectionReader(f, 0, n)
		cfg.Message.FileName = cfg.File
	}
	req, err := cfg.Message.Build(cfg.Target, body, size)
	if err != nil {
		return 0, &Error{Input, err}
	}
	if req.Body != nil {
		req.Body = io.TeeReader(req.Body, x.sent)
	}
	x.req = req

	conn, err := Dial(ctx, cfg.Target.Address, cfg.TLS, cfg.Timeout)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.nc.Close() })()
	x.printConnection(conn, cfg)
	x.printRequest()
	x.start = time.Now()
	err = conn.Do(req, x)
	total := time.Since(x.start)
	if offset, ok := conn.Original(); ok && err == nil {
		if err := x.takeOriginal(offset); err != nil {
			return 0, err
		}
	}
	if err := x.closeOutput(err); err != nil {
		return 0, err
	}
	x.printTiming(conn, total)
	if err != nil {
		var failed *Error
		if errors.As(err, &failed) && failed.Kind == Closed && cfg.TLS == nil {
			err = fmt.Errorf("%w (is it a port for icaps://?)", err)
		}
		return 0, err
	}
	x.printVerdict()
	return x.status, nil
}

// openBody opens a regular file. Its size has to be known before the first byte is sent.
func openBody(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("cannot send %q: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// takeOriginal completes the body that came back with the request's own from offset on, as a 206 wants it.
func (x *exchange) takeOriginal(offset int64) error {
	x.partial, x.offset, x.cameBack = true, offset, x.size
	body := func() io.Reader {
		if x.content == nil {
			return bytes.NewReader(nil)
		}
		return io.MultiReader(bytes.NewReader(x.req.Before), io.NewSectionReader(x.content, 0, x.content.Size()), bytes.NewReader(x.req.After))
	}
	x.sent.Reset() // the part that was sent: a preview, say
	if _, err := io.Copy(x.sent, body()); err != nil {
		return &Error{Input, err}
	}
	rest := body()
	if _, err := io.CopyN(io.Discard, rest, offset); err != nil {
		return &Error{Input, err}
	}
	_, err := io.Copy(dataWriter{x}, rest)
	return err
}

// dataWriter gives what is written to Data.
type dataWriter struct{ x *exchange }

func (w dataWriter) Write(p []byte) (int, error) { return len(p), w.x.Data(p) }

// exchange is the Receiver of Send: it prints what comes and remembers what the verdict needs.
type exchange struct {
	w      io.Writer
	req    *Request
	sent   hash.Hash // of the body; written by the goroutine that writes it
	start  time.Time // of the request
	output string
	file   *os.File

	content *io.SectionReader // of the file that is sent, nil: none

	continued time.Duration // until the 100 Continue, 0: there was none
	first     time.Duration // until the final head

	status   int
	reason   string
	options  icap.Options
	list     icap.Encapsulated
	blocks   []byte
	size     int64 // of the body that came back
	received hash.Hash

	partial  bool  // a 206: the body is what came back, and then the original's
	cameBack int64 // bytes
	offset   int64 // from which on the original is used
}

func (x *exchange) Head(r *icap.Response, head []byte) error {
	x.printLines("< ", head)
	if r.Status == 100 {
		x.continued = time.Since(x.start)
		fmt.Fprintf(x.w, "> the other %d bytes\n", x.req.Size-x.req.Preview)
		return nil
	}
	x.first = time.Since(x.start)
	x.status, x.reason = r.Status, string(r.Reason)
	if x.req.Method == icap.MethodOptions && r.Status == 200 {
		x.options = icap.ParseOptions(r)
	}
	return nil
}

func (x *exchange) Blocks(e *icap.Encapsulated, blocks []byte, corrected bool) error {
	if corrected {
		fmt.Fprintln(x.w, "! the Encapsulated field is wrong; the heads are where their empty lines are")
	}
	x.list = *e
	x.blocks = append(x.blocks, blocks...)
	x.printLines("< | ", blocks)
	return nil
}

func (x *exchange) Data(p []byte) error {
	if x.output != "" && x.file == nil {
		var err error
		if x.file, err = os.Create(x.output); err != nil {
			return err
		}
	}
	if x.file != nil {
		if _, err := x.file.Write(p); err != nil {
			return err
		}
	}
	x.size += int64(len(p))
	x.received.Write(p)
	return nil
}

// closeOutput ends the output file; err is the error of the exchange. A body without a byte is an empty file.
func (x *exchange) closeOutput(err error) error {
	if x.output == "" || err != nil && x.file == nil {
		return nil
	}
	if x.file == nil && x.list.HasBody() {
		if x.file, err = os.Create(x.output); err != nil {
			return err
		}
	}
	if x.file == nil {
		fmt.Fprintf(x.w, "* no body came back: %s is not written\n", x.output)
		return nil
	}
	return x.file.Close()
}

func (x *exchange) printConnection(c *Conn, cfg SendConfig) {
	fmt.Fprintf(x.w, "* connected to %v\n", c.nc.RemoteAddr())
	tc, ok := c.nc.(*tls.Conn)
	if !ok {
		return
	}
	st := tc.ConnectionState()
	verified := "verified"
	if cfg.TLS.InsecureSkipVerify {
		verified = "not verified"
	}
	fmt.Fprintf(x.w, "* %s, %s, %v; certificate %q of %q, until %s, %s\n", tls.VersionName(st.Version), tls.CipherSuiteName(st.CipherSuite),
		st.CurveID, st.PeerCertificates[0].Subject, st.PeerCertificates[0].Issuer, st.PeerCertificates[0].NotAfter.Format(time.DateOnly), verified)
}

func (x *exchange) printRequest() {
	x.printLines("> ", x.req.Head)
	x.printLines("> | ", x.req.Blocks)
	switch r := x.req; {
	case r.Body == nil:
	case r.more():
		fmt.Fprintf(x.w, "> preview: %d of %d bytes\n", r.Preview, r.Size)
	case r.Preview >= 0:
		fmt.Fprintf(x.w, "> preview: all %d bytes (ieof)\n", r.Size)
	default:
		fmt.Fprintf(x.w, "> body: %d bytes\n", r.Size)
	}
}

// printLines prints heads line by line, empty lines included. Bytes that could play tricks with a terminal are made visible.
func (x *exchange) printLines(prefix string, heads []byte) {
	for line := range bytes.Lines(heads) {
		fmt.Fprintln(x.w, strings.TrimRight(prefix+Printable(bytes.TrimRight(line, "\r\n")), " "))
	}
}

// Printable makes visible what could play tricks with a terminal: control characters, and those that have no width or turn the direction of
// writing.
func Printable(p []byte) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, string(p))
}

func (x *exchange) printTiming(c *Conn, total time.Duration) {
	switch {
	case x.partial:
		fmt.Fprintf(x.w, "< body: %d bytes, then %d of the original from byte %d on\n", x.cameBack, x.size-x.cameBack, x.offset)
	case x.size > 0:
		fmt.Fprintf(x.w, "< body: %d bytes\n", x.size)
	}
	fmt.Fprintf(x.w, "timing: connect %s", ms(c.ConnectTime))
	if c.HandshakeTime > 0 {
		fmt.Fprintf(x.w, ", handshake %s", ms(c.HandshakeTime))
	}
	fmt.Fprint(x.w, "; after the request began:")
	if x.continued > 0 {
		fmt.Fprintf(x.w, " 100 Continue %s,", ms(x.continued))
	}
	if x.first > 0 {
		fmt.Fprintf(x.w, " answer %s,", ms(x.first))
	}
	fmt.Fprintf(x.w, " end %s\n", ms(total))
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func (x *exchange) printVerdict() {
	fmt.Fprintf(x.w, "verdict: %s\n", x.verdict())
}

func (x *exchange) verdict() string {
	answer := fmt.Sprint(x.status)
	if x.partial {
		answer = fmt.Sprintf("206, the original from byte %d on", x.offset)
	}
	switch {
	case x.status == 204:
		return "no modification (204)"
	case x.status >= 300:
		return fmt.Sprintf("no service (%d %s)", x.status, Printable([]byte(x.reason)))
	case x.req.Method == icap.MethodOptions:
		return x.serviceVerdict()
	case x.req.Method == icap.MethodReqmod && bytes.HasPrefix(x.blocks, []byte("HTTP/")):
		return fmt.Sprintf("modified/blocked (%s, %s)", answer, x.httpStatus())
	case !x.sameBody() && x.req.Method == icap.MethodRespmod:
		return fmt.Sprintf("modified/blocked (%s, %s)", answer, x.httpStatus())
	case !x.sameBody():
		return fmt.Sprintf("modified (%s)", answer)
	case !x.req.IsEcho(x.blocks):
		return fmt.Sprintf("same body, other heads (%s)", answer)
	}
	return fmt.Sprintf("identical echo (%s)", answer)
}

func (x *exchange) sameBody() bool {
	return x.list.HasBody() == (x.req.Body != nil) && x.size == x.req.Size && bytes.Equal(x.sent.Sum(nil), x.received.Sum(nil))
}

// httpStatus returns "HTTP 403" of an encapsulated response head.
func (x *exchange) httpStatus() string {
	words := bytes.SplitN(x.blocks, []byte(" "), 3)
	if len(words) < 2 {
		return "no HTTP head"
	}
	return "HTTP " + Printable(bytes.TrimSpace(words[1]))
}

func (x *exchange) serviceVerdict() string {
	o := &x.options
	var methods []string
	for m := icap.MethodReqmod; m < icap.NumMethods; m++ {
		if o.Methods[m] {
			methods = append(methods, m.String())
		}
	}
	s := fmt.Sprintf("service (%d): methods %s, ", x.status, strings.Join(methods, " and "))
	if len(methods) == 0 {
		s = fmt.Sprintf("service (%d): no methods named, ", x.status)
	}
	if o.Preview >= 0 {
		s += fmt.Sprintf("preview %d", o.Preview)
	} else {
		s += "no preview"
	}
	if o.Allow&icap.Allow204 != 0 {
		s += ", 204 allowed"
	}
	if o.MaxConnections > 0 {
		s += fmt.Sprintf(", at most %d connections", o.MaxConnections)
	}
	return s
}
