// Package capacity finds the highest rate at which a target holds an SLO.
//
// A trial is one run of bench/load at one rate; it holds or it fails. Near the knee that is a matter of luck, so no single trial decides:
// next chooses the rate of each trial by what all the others have shown, and Find says between which rates the knee is and how sure that is
// (see belief). Both are functions of the list of trials and know neither a clock nor a network, so a search can be ended at any time and
// gone on with later, and is tested with simulated targets.
//
// Run makes the trials: it plans their lengths from the time there is, ends one that cannot hold any more, and waits until the target has
// worked off what it was left with before the next one begins.
package capacity
