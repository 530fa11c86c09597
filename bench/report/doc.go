// Package report shows results of the load generator as one HTML page that needs nothing else: charts are SVG in it, and there is no script,
// font or style from outside. Without scripts only the values under the pointer are missing.
package report
