// Package result holds what a run of the load generator has shown: a Result, which prints itself, becomes JSON and is read back, is merged
// with those of other machines, and is judged by conditions such as "p99>50ms".
//
// Times are kept in HDR histograms and never as averages of averages, so that the figures of a merged result are those of one run over all
// of its requests.
package result
