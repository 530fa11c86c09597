// Package spill keeps what was sent of a large request in a file, so that it can be sent again to another server.
//
// A Store is a folder with a limit for all files together. A File is one request's bytes, first in, read in order from any place. It has no name
// in the folder, so nothing is left behind however the process ends, and its bytes are encrypted with a key that is in memory only: what
// clients send is often just what must not lie around.
//
// A File is owned by an event loop, which must not wait for a disk. So Append and Read never block: a goroutine per File opens, encrypts, writes,
// reads and decrypts, in the order in which it was asked to. The loop asks Busy how far the disk is behind, and stops reading its client.
package spill
