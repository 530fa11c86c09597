package serve

import (
	"crypto/tls"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/gateway/selfsign"
)

// File is a YAML file that describes servers.
type File struct {
	Control        string     `yaml:"control"`         // address of the control endpoint; "": none
	IncidentHeader string     `yaml:"incident_header"` // field with the id of an incident; "": X-Incident-ID
	Servers        []Settings `yaml:"servers"`
}

// Needed is for messages about a file that has nothing.
func (*File) Needed() string { return "servers" }

// Config is what a Cluster runs.
type Config struct {
	Control        string // address, "": none
	IncidentHeader string // "": X-Incident-ID
	Servers        []ServerConfig
}

// ServerConfig is one server.
type ServerConfig struct {
	Address string
	Server  dlpstub.Config
}

//go:embed profiles/*.yaml
var profiles embed.FS

// Profiles are the names of the profiles.
var Profiles = []string{"symantec", "c-icap", "e2guardian"}

// profile returns the settings of a profile.
func profile(name string) (Settings, error) {
	var s Settings
	data, err := profiles.ReadFile("profiles/" + name + ".yaml")
	if err != nil || !slices.Contains(Profiles, name) {
		return s, fmt.Errorf("%s is none, allowed: %s", configs.Quote(name), strings.Join(Profiles, ", "))
	}
	if err := configs.Decode(name+".yaml", data, &s).Err(); err != nil {
		panic("BUG: " + err.Error())
	}
	return s, nil
}

// Listening makes a configuration of flags alone: one server for each address.
func Listening(addresses []string, flags Settings) (*Config, error) {
	file := &File{}
	for _, address := range addresses {
		file.Servers = append(file.Servers, Settings{Listen: address})
	}
	var errs []error
	c := build(file, flags, func(key, format string, args ...any) {
		if _, name, ok := strings.Cut(key, "]."); ok {
			key = "--" + name
		}
		err := fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
		if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) { // each server has the same flags
			errs = append(errs, err)
		}
	})
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// Load reads a file. Flags override the settings of every server in it. An error is of type configs.Faults unless a flag is wrong.
func Load(path string, flags Settings) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, flags)
}

// Parse is Load for a text that is already at hand. The name stands in front of every fault.
func Parse(name string, data []byte, flags Settings) (*Config, error) {
	var file File
	doc := configs.Decode(name, data, &file)
	var wrong error
	c := build(&file, flags, func(key, format string, args ...any) {
		if strings.HasPrefix(key, "--") {
			wrong = fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
			return
		}
		doc.Fault(key, format, args...)
	})
	if err := doc.Err(); err != nil {
		return nil, err
	}
	if wrong != nil {
		return nil, wrong
	}
	return c, nil
}

// build puts the layers of settings over each other. A fault of a flag has a key that begins with two dashes.
func build(file *File, flags Settings, fault faultFunc) *Config {
	c := &Config{Control: file.Control, IncidentHeader: file.IncidentHeader}
	if h := c.IncidentHeader; h != "" && !isField(h+":") {
		fault("incident_header", "%s is no name of a field", configs.Quote(h))
	}
	if len(file.Servers) == 0 {
		fault("servers", "is missing, needed: at least one server with listen")
	}
	seen := make(map[string]bool)
	self := sync.OnceValues(selfSigned)
	for i := range file.Servers {
		own := &file.Servers[i]
		at := fmt.Sprintf("servers[%d].", i)
		of := func(key, format string, args ...any) {
			if name := flags.flag(key); name != "" {
				fault(name, format, args...)
				return
			}
			fault(at+key, format, args...)
		}
		all := flags.over(*own)
		if all.Profile != nil {
			below, err := profile(*all.Profile)
			if err != nil {
				of("profile", "%v", err)
			}
			if mode := value(all.Mode); mode != "" && mode != "modify" && mode != "partial" { // which takes back what the profile changes
				below.ChangeHeader, below.ChangeBody, below.ChangeSkip = nil, nil, nil
			}
			all = all.over(below)
		}
		switch {
		case own.Listen == "":
			of("listen", "is missing, needed: an address such as 127.0.0.1:1344")
		case seen[own.Listen] && !strings.HasSuffix(own.Listen, ":0"):
			of("listen", "%s is here twice", configs.Quote(own.Listen))
		}
		seen[own.Listen] = true
		server := ServerConfig{Address: own.Listen, Server: all.config(of)}
		server.Server.TLS = all.tls(self, of)
		c.Servers = append(c.Servers, server)
	}
	return c
}

// flag returns the flag that has given the setting with this key, or "".
func (s *Settings) flag(key string) string {
	name, _, _ := strings.Cut(key, "[")
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == name && !v.Field(i).IsZero() {
			return "--" + strings.ReplaceAll(name, "_", "-")
		}
	}
	return ""
}

// selfSigned makes a certificate for this machine.
func selfSigned() (tls.Certificate, error) {
	data, err := selfsign.Generate(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(data, data)
}

// tls loads the certificate, or takes the self-signed one that all servers share, if there is to be one.
func (s *Settings) tls(self func() (tls.Certificate, error), fault faultFunc) *tls.Config {
	var cert tls.Certificate
	switch {
	case value(s.TLSCert) != "":
		data, err := readFile(*s.TLSCert)
		if err != nil {
			fault("tls_cert", "%v", err)
			return nil
		}
		if cert, err = tls.X509KeyPair(data, data); err != nil {
			fault("tls_cert", "cannot load the certificate and key from %s: %v", configs.Quote(*s.TLSCert), err)
			return nil
		}
	case value(s.TLS):
		var err error
		if cert, err = self(); err != nil {
			fault("tls", "%v", err)
			return nil
		}
		if s.TLSCAOut != nil {
			public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
			if err := os.WriteFile(*s.TLSCAOut, public, 0o644); err != nil {
				fault("tls_ca_out", "cannot write: %v", err)
			}
		}
	default:
		if s.TLSCAOut != nil {
			fault("tls_ca_out", "needs tls")
		}
		return nil
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
}
