package options

import (
	"slices"
	"strings"

	"icapgate/icap"
)

// treatment is what a server wants of files with some extension (RFC 3507 4.10.2). Of what two servers want, the greater holds for both: a server may
// get more than it needs, and never less.
type treatment uint8

const (
	ignored   treatment = iota // it does not want them
	previewed                  // a preview first
	complete                   // all of them at once
)

// transfers are the Transfer-Preview, Transfer-Ignore and Transfer-Complete of a server.
type transfers struct {
	of     map[string]treatment // by extension, in lower case
	others treatment            // of all other extensions: where the "*" is
	said   bool                 // it has sent some list
}

// newTransfers reads a server's lists. Where they contradict each other, they are read as clients do: Transfer-Preview first, then Transfer-Complete.
// ended says that the gateway ends previews, so that a server gets all at once whatever the client does.
func newTransfers(o *icap.Options, ended bool) transfers {
	t := transfers{of: make(map[string]treatment), others: complete}
	if o.Preview >= 0 && o.TransferPreview+o.TransferComplete+o.TransferIgnore == "" {
		t.others = previewed
	}
	if len(o.TransferPreview)+len(o.TransferComplete)+len(o.TransferIgnore) > maxTransfers {
		return transfers{others: complete, said: true}
	}
	star := false
	for _, l := range []struct {
		list string
		is   treatment
	}{{o.TransferPreview, previewed}, {o.TransferComplete, complete}, {o.TransferIgnore, ignored}} {
		for ext := range strings.SplitSeq(strings.ToLower(l.list), ",") {
			ext = strings.TrimSpace(ext)
			_, known := t.of[ext]
			switch {
			case ext == "":
				continue
			case ext == "*" && !star:
				t.others, star = l.is, true
			case ext != "*" && !known:
				t.of[ext] = l.is
			}
			t.said = true
		}
	}
	if ended {
		for ext, is := range t.of {
			t.of[ext] = min(is, previewed)
		}
		t.others = min(t.others, previewed)
	}
	return t
}

// get returns what is wanted of files with some extension.
func (t *transfers) get(ext string) treatment {
	if is, ok := t.of[ext]; ok {
		return is
	}
	return t.others
}

// mergeTransfers returns what all want. Without previews what would be previewed is sent at once.
func mergeTransfers(lists []transfers, previews bool) transfers {
	m := transfers{of: make(map[string]treatment)}
	merge := func(get func(t *transfers) treatment) (is treatment) {
		for i := range lists {
			is = max(is, get(&lists[i]))
		}
		if is == previewed && !previews {
			is = complete
		}
		return is
	}
	m.others = merge(func(t *transfers) treatment { return t.others })
	for i := range lists {
		for ext := range lists[i].of {
			if _, merged := m.of[ext]; merged {
				continue
			}
			m.of[ext] = merge(func(t *transfers) treatment { return t.get(ext) })
		}
	}
	return m
}

// list is the value of the field for a treatment, "": none. Extensions that are treated as all others are not named.
func (t *transfers) list(of treatment) string {
	var all []string
	for ext, is := range t.of {
		if is == of && is != t.others {
			all = append(all, ext)
		}
	}
	slices.Sort(all)
	if of == t.others {
		all = append(all, "*")
	}
	return strings.Join(all, ", ")
}
