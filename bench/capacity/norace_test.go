//go:build !race

package capacity

const race = false
