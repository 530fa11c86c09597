// Package scenario says what the requests of a load look like: which methods and services in which shares, how large their bodies are and
// what is in them, who the users are, and which clients misbehave.
//
// The way of a scenario: Read takes a YAML file, Preset one of those that come with the program, Single makes one of a single message. Compile
// turns it into a Mix: heads become templates, files are read into memory, everything is checked. Each worker of a load takes its own Source
// from the Mix, and Next gives it the n-th request of the run, which depends on nothing but the seed and n. It costs no memory: heads are
// written into buffers that the Source keeps.
package scenario
