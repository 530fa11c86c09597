package options

import (
	"strconv"

	"icapgate/icap"
)

// serviceName stands for the servers', which differ from version to version: clients show it, and some remember it.
const serviceName = "icapgate"

// Append appends what the gateway says of a service as header lines. ISTag, Date, Max-Connections and Encapsulated are the caller's.
func Append(dst []byte, o *icap.Options) []byte {
	dst = append(dst, "Methods: "...)
	comma := ""
	for _, m := range []icap.Method{icap.MethodReqmod, icap.MethodRespmod} {
		if o.Methods[m] {
			dst = append(append(dst, comma...), m.String()...)
			comma = ", "
		}
	}
	dst = append(dst, "\r\nService: "+serviceName+"\r\nOptions-TTL: "...)
	dst = strconv.AppendInt(dst, int64(o.TTL), 10)
	dst = append(dst, "\r\n"...)
	if o.Preview >= 0 {
		dst = append(dst, "Preview: "...)
		dst = strconv.AppendInt(dst, int64(o.Preview), 10)
		dst = append(dst, "\r\n"...)
	}
	dst = appendField(dst, "Transfer-Preview", o.TransferPreview)
	dst = appendField(dst, "Transfer-Ignore", o.TransferIgnore)
	dst = appendField(dst, "Transfer-Complete", o.TransferComplete)
	dst = appendField(dst, "Allow", o.Allow.String())
	return appendField(dst, "X-Include", o.Include)
}

// appendField appends nothing for an empty value.
func appendField(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(dst, name...), ": "...)
	return append(append(dst, value...), "\r\n"...)
}
