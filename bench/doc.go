// Package bench is the client side of ICAP: it sends single requests as real clients do (Send) and many as a load
// (Load), and checks every byte of the answers. It knows a gateway or a server by its address only.
//
// A Message says what a request looks like and builds it; a Conn takes Requests to their final answers, with previews,
// 100 Continue and answers that come while the body is still being written; a Receiver gets what comes back, in
// order. Load runs one worker for each connection and collects a Result, which prints itself and becomes JSON.
package bench
