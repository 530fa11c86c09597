package admin

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"time"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"ago": ago, "uptime": uptime, "ejection": ejection}).Parse(pageText))

// page shows the status to a person. It has no script and loads nothing, and the policy says so to the browser.
func (h *handler) page(w http.ResponseWriter, r *http.Request) {
	var page bytes.Buffer
	if err := pageTemplate.Execute(&page, h.gateway.Status()); err != nil {
		http.Error(w, "cannot render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	page.WriteTo(w)
}

// ago returns the time since t in its largest two units or so, "" if t is not known.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return rounded(time.Since(t))
}

func ejection(s ServerStatus) string { return s.Ejection(time.Now()) }

func uptime(seconds float64) string { return rounded(time.Duration(seconds * float64(time.Second))) }

// rounded drops the units that nobody reads beside larger ones.
func rounded(d time.Duration) string {
	switch {
	case d >= time.Hour:
		text := d.Truncate(time.Minute).String()
		return text[:len(text)-len("0s")]
	default:
		return d.Truncate(time.Second).String()
	}
}
