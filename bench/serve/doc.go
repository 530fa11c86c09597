// Package serve runs several fake DLP servers (bench/dlpstub) in one process: `icapbench serve`.
//
// What a server does is said by Settings, the same for flags and for the YAML file (File). Settings come in layers: flags, the file, a
// profile that imitates a product. A Cluster runs the servers, lets them fail on command over HTTP (Cluster.Handler), and tells what
// they got as Stats, which ReadStats reads again: that is how another program proves that no request was lost or doubled.
package serve
