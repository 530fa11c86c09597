package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

// setup is what a gateway is configured with. Its templates read it.
type setup struct {
	Dir    string // of the gateway's own files
	PEM    string // key and certificate
	Module string // nginx: its stream module, "": built in
	CPUs   int

	Secure, Echo, Plain  string // addresses of the doors
	Admin                string
	Servers, EchoServers []string
	AccessLog            string // of icapgate: a file or off
}

// program is one kind of gateway.
type program struct {
	name    string
	doors   []door
	file    string // name of its configuration
	config  *template.Template
	args    []string // to run with it; CONFIG and DIR stand for the file and the folder
	check   []string // to check it
	version []string // to print its version
}

// Every gateway is set up as its documentation advises for this work: a thread or worker for each CPU, round robin over the
// servers, no logs, no limit that the load could reach.
var programs = []*program{
	{
		name:  "icapgate",
		doors: doors,
		file:  "icapgate.yaml",
		config: parse(`listeners:
  - {name: icaps, address: "{{.Secure}}", tls: {certificates: [{cert_file: "{{.PEM}}"}]}}
  - {name: echo, address: "{{.Echo}}", tls: {certificates: [{cert_file: "{{.PEM}}"}]}}
  - {name: icap, address: "{{.Plain}}"}
services:
  - {path: "*", listener: echo, pool: echo}
  - {path: "*", pool: dlp}
pools:
  - name: dlp
    servers: [{{range $i, $s := .Servers}}{{if $i}}, {{end}}"{{$s}}"{{end}}]
  - name: echo
    servers: [{{range $i, $s := .EchoServers}}{{if $i}}, {{end}}"{{$s}}"{{end}}]
log: {level: warn, format: text}
access_log: {output: "{{.AccessLog}}"}
admin: {address: "{{.Admin}}"}
state_dir: state
`),
		args:    []string{"run", "--config", "CONFIG"},
		check:   []string{"check", "--config", "CONFIG"},
		version: []string{"version"},
	},
	{
		name:  "haproxy",
		doors: doors,
		file:  "haproxy.cfg",
		config: parse(`global
	nbthread {{.CPUs}}
	maxconn 8000
	ssl-default-bind-curves X25519
	ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
	ssl-default-bind-options ssl-min-ver TLSv1.3

defaults
	mode tcp
	balance roundrobin
	option tcpka
	timeout connect 5s
	timeout client 1h
	timeout server 1h

listen icaps
	bind {{.Secure}} ssl crt {{.PEM}}
{{range $i, $s := .Servers}}	server dlp{{$i}} {{$s}} check
{{end}}
listen echo
	bind {{.Echo}} ssl crt {{.PEM}}
{{range $i, $s := .EchoServers}}	server echo{{$i}} {{$s}} check
{{end}}
listen icap
	bind {{.Plain}}
{{range $i, $s := .Servers}}	server dlp{{$i}} {{$s}} check
{{end}}`),
		args:    []string{"-db", "-f", "CONFIG"},
		check:   []string{"-c", "-f", "CONFIG"},
		version: []string{"-vv"},
	},
	{
		name:  "nginx",
		doors: doors,
		file:  "nginx.conf",
		config: parse(`{{with .Module}}load_module {{.}};
{{end}}daemon off;
pid {{.Dir}}/nginx.pid;
error_log stderr error;
worker_processes {{.CPUs}};
worker_rlimit_nofile 20000;
events {
	worker_connections 8192;
}
stream {
	access_log off;
	ssl_certificate {{.PEM}};
	ssl_certificate_key {{.PEM}};
	ssl_protocols TLSv1.3;
	ssl_ecdh_curve X25519;
	ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
	ssl_session_cache shared:icaps:10m;
	proxy_connect_timeout 5s;
	proxy_timeout 1h;
	upstream dlp {
{{range .Servers}}		server {{.}};
{{end}}	}
	upstream echo {
{{range .EchoServers}}		server {{.}};
{{end}}	}
	server {
		listen {{.Secure}} ssl reuseport;
		proxy_pass dlp;
	}
	server {
		listen {{.Echo}} ssl reuseport;
		proxy_pass echo;
	}
	server {
		listen {{.Plain}} reuseport;
		proxy_pass dlp;
	}
}
`),
		args:    []string{"-p", "DIR", "-e", "stderr", "-c", "CONFIG"},
		check:   []string{"-t", "-p", "DIR", "-e", "stderr", "-c", "CONFIG"},
		version: []string{"-V"},
	},
	{
		name:  "stunnel",
		doors: []door{secure, echo}, // no TLS, no stunnel
		file:  "stunnel.conf",
		config: parse(`foreground = yes
pid =
syslog = no
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
cert = {{.PEM}}
sslVersionMin = TLSv1.3
curves = X25519
ciphersuites = TLS_AES_128_GCM_SHA256
failover = rr

[icaps]
accept = {{.Secure}}
{{range .Servers}}connect = {{.}}
{{end}}
[echo]
accept = {{.Echo}}
{{range .EchoServers}}connect = {{.}}
{{end}}`),
		args:    []string{"CONFIG"},
		version: []string{"-version"},
	},
}

func parse(text string) *template.Template {
	return template.Must(template.New("").Option("missingkey=error").Parse(text))
}

// find returns the path of an installed program. Debian keeps daemons in /usr/sbin, which is not in every user's PATH.
func find(name string) (path string, ok bool) {
	for _, name := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

// write writes the configuration into s.Dir and returns its path.
func (p *program) write(s setup) (string, error) {
	path := filepath.Join(s.Dir, p.file)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := p.config.Execute(f, s); err != nil {
		return "", err
	}
	return path, f.Close()
}

// fill puts the configuration's path and folder into arguments.
func fill(args []string, config string) []string {
	r := strings.NewReplacer("CONFIG", config, "DIR", filepath.Dir(config))
	var filled []string
	for _, a := range args {
		filled = append(filled, r.Replace(a))
	}
	return filled
}

// printVersion returns what the program says of itself, in one line.
func (p *program) printVersion(path string) (string, error) {
	out, err := exec.Command(path, p.version...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, strings.Join(p.version, " "), err)
	}
	return versionLine(string(out)), nil
}

var (
	versionWords = regexp.MustCompile(`(?m)^(?:HAProxy version|nginx version:|stunnel|icapgate) (?:nginx/)?(\S+)`)
	sslWords     = regexp.MustCompile(`OpenSSL \d\S*`)
)

// versionLine picks a program's version out of what it says of itself, and the OpenSSL that it runs with, which all name after
// the one that they were built with.
func versionLine(text string) string {
	words := versionWords.FindStringSubmatch(text)
	if words == nil {
		return "of unknown version"
	}
	line := words[1]
	if ssl := sslWords.FindAllString(text, -1); ssl != nil {
		line += ", " + ssl[len(ssl)-1]
	}
	return line
}

var (
	streamOption = regexp.MustCompile(`--with-stream(=dynamic)?(\s|$)`)
	modulesPath  = regexp.MustCompile(`--modules-path=(\S+)`)
)

// streamModule finds out from nginx -V which file has the stream module, "" if it is built in.
func streamModule(nginx string) (path string, err error) {
	out, err := exec.Command(nginx, "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -V: %w", nginx, err)
	}
	option := streamOption.FindSubmatch(out)
	if option == nil {
		return "", fmt.Errorf("%s is built without the stream module", nginx)
	}
	if len(option[1]) == 0 {
		return "", nil
	}
	dir := modulesPath.FindSubmatch(out)
	if dir == nil {
		return "", fmt.Errorf("%s does not say where its modules are", nginx)
	}
	path = filepath.Join(string(dir[1]), "ngx_stream_module.so")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the stream module of nginx is missing (Debian package libnginx-mod-stream): %w", err)
	}
	return path, nil
}
