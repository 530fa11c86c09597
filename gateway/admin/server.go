package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// unixPrefix marks an address that is the path of a UNIX socket.
const unixPrefix = "unix:"

// Server serves one admin or metrics address.
type Server struct {
	listener net.Listener
	http     *http.Server
	done     chan struct{} // closed when the serving goroutine has ended
}

// Listen opens an address, host:port or unix:PATH, and serves it. When it returns, the address accepts. readOnly is for the metrics
// address.
func Listen(address string, g Gateway, readOnly bool, logger *slog.Logger) (*Server, error) {
	listener, err := listen(address)
	if err != nil {
		return nil, err
	}
	s := &Server{
		listener: listener,
		http: &http.Server{
			Handler:           NewHandler(g, Options{ReadOnly: readOnly, CheckHost: isLoopback(listener.Addr())}),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      time.Minute, // a reload may have to look up names
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("the admin endpoint has stopped", "address", s.Address(), "error", err)
		}
	}()
	return s, nil
}

// Address returns the address in the form that Listen and NewClient take, with the real port.
func (s *Server) Address() string {
	addr := s.listener.Addr()
	if addr.Network() == "unix" {
		return unixPrefix + addr.String()
	}
	return addr.String()
}

// Close ends the server at once, requests that run included, and removes its socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

func listen(address string) (net.Listener, error) {
	var listener net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		listener, err = listenUnix(path)
	} else {
		listener, err = net.Listen("tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on admin address %q: %w", address, err)
	}
	return listener, nil
}

// listenUnix opens a socket for its owner and group. A socket that a dead process has left behind is replaced.
func listenUnix(path string) (net.Listener, error) {
	listener, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		listener, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// removeStale removes a socket that nobody listens on, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return errors.New("the file exists and is not a socket: remove it or choose another path")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return errors.New("a running process listens there already: stop it or choose another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
