//go:build race

package capacity

const race = true // everything takes ten times as long
