package main

import (
	"fmt"
	"strconv"
	"strings"
)

// door is a listener that every gateway has, on an address of its own.
type door int

const (
	secure door = iota // icaps, to the servers that answer 204
	echo               // icaps, to the servers that echo
	plain              // icap, to the servers that answer 204
)

var doors = []door{secure, echo, plain}

// unit is what a row is measured in.
type unit int

const (
	perRequest    unit = iota // microseconds of CPU
	perGigabyte               // seconds of CPU, of bodies sent
	growth                    // times the CPU per request with fewer connections
	tail                      // microseconds, 99th percentile
	perConnection             // KiB of memory
)

func (u unit) String() string {
	return [...]string{"µs of CPU per request", "s of CPU per GB", "times the CPU per request", "µs p99", "KiB per connection"}[u]
}

// row is one kind of work.
type row struct {
	name        string
	what        string
	method      string // for icapbench
	size        string // of a body, for icapbench
	chunk       string
	connections int
	fewer       int  // connections of the load with which that of growth is compared
	requests    int  // in one round: a few tenths of a second, as many short rounds tell more than few long ones
	rate        int  // requests per second, 0: as fast as answers come
	fresh       bool // a connection for each request
	door        door
	unit        unit
	target      float64 // ratio to the best peer; of perConnection KiB
}

var rows = []row{
	{name: "options", what: "OPTIONS", method: "options", size: "0", connections: 16, requests: 10000, target: 1.0},
	{name: "reqmod-1k", what: "REQMOD 1 KiB, 204", method: "reqmod", size: "1KiB", connections: 16, requests: 10000, target: 1.0},
	{name: "reqmod-1k-256", what: "REQMOD 1 KiB, 204", method: "reqmod", size: "1KiB", connections: 256, requests: 25000, target: 1.0},
	{name: "reqmod-64k", what: "REQMOD 64 KiB, 204", method: "reqmod", size: "64KiB", connections: 16, requests: 3000, target: 1.0},
	{name: "reqmod-10m", what: "REQMOD 10 MB, 204", method: "reqmod", size: "10MB", connections: 4, requests: 40, unit: perGigabyte, target: 0.85},
	{name: "respmod-1k", what: "RESPMOD 1 KiB, echoed", method: "respmod", size: "1KiB", connections: 16, requests: 10000, door: echo, target: 1.1},
	{name: "respmod-64k", what: "RESPMOD 64 KiB, echoed", method: "respmod", size: "64KiB", connections: 16, requests: 2000, door: echo, target: 1.0},
	{name: "respmod-10m", what: "RESPMOD 10 MB, echoed", method: "respmod", size: "10MB", connections: 4, requests: 30, door: echo, unit: perGigabyte, target: 1.0},
	{name: "new-connection", what: "REQMOD 1 KiB, 204, a TLS connection for each", method: "reqmod", size: "1KiB", connections: 16, requests: 500, fresh: true, target: 0.9},
	{name: "plain-10m", what: "REQMOD 10 MB in chunks of 1 MiB, 204, without TLS", method: "reqmod", size: "10MB", chunk: "1MiB", connections: 4, requests: 60, door: plain, unit: perGigabyte, target: 0.7},
	{name: "growth-2000", what: "REQMOD 1 KiB, 204, compared with 256 connections", method: "reqmod", size: "1KiB", connections: 2000, fewer: 256, requests: 20000, unit: growth, target: 1.0},
	{name: "p99", what: "REQMOD 1 KiB, 204, 8,000 requests/s", method: "reqmod", size: "1KiB", connections: 64, requests: 8000, rate: 8000, unit: tail, target: 1.0},
	{name: "idle", what: "memory of an idle connection after a REQMOD of 64 KiB", method: "reqmod", size: "64KiB", connections: 1000, unit: perConnection, target: 64},
}

// choose returns those of all whose names are in list, in the order of all; an empty list stands for all.
func choose[T any](all []T, nameOf func(T) string, list string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		wanted[strings.TrimSpace(name)] = true
	}
	var chosen []T
	for _, t := range all {
		if wanted[nameOf(t)] {
			chosen = append(chosen, t)
			delete(wanted, nameOf(t))
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("%q is not one of %s", name, names(all, nameOf))
	}
	return chosen, nil
}

func names[T any](all []T, nameOf func(T) string) string {
	var list []string
	for _, t := range all {
		list = append(list, nameOf(t))
	}
	return strings.Join(list, ",")
}

func rowName(r row) string          { return r.name }
func programName(p *program) string { return p.name }

// loadArgs returns what icapbench gets for that many requests of the row.
func (r *row) loadArgs(address, trust, result string, requests int) []string {
	scheme := "icaps"
	if r.door == plain {
		scheme = "icap"
	}
	args := []string{"load", scheme + "://" + address + "/" + r.method, "-m", r.method, "-s", r.size,
		"-c", strconv.Itoa(r.connections), "-n", strconv.Itoa(requests), "--json", result}
	if r.door != plain {
		args = append(args, "--ca", trust)
	}
	if r.rate > 0 {
		args = append(args, "--rate", strconv.Itoa(r.rate))
	}
	if r.chunk != "" {
		args = append(args, "--chunk", r.chunk)
	}
	if r.fresh {
		args = append(args, "--new-connection-every", "1")
	}
	return args
}
