package gateway

// buffer is bytes that have to wait: a request that may be sent again, an unfinished head, what a socket has not taken. It belongs to
// one connection or transaction of a loop, and its memory to the loop.
type buffer struct {
	B     []byte
	class int8 // of the memory; len(bufferClasses): too large to be kept
}

// bufferClasses are the capacities in which a loop keeps memory, in bytes: a small message, a record or two, replay_buffer's default with
// its heads, an out-buffer at its high-water mark with one more round and TLS's overhead.
//
// One pool for all sizes would not do: whatever calibrates itself by the number of uses ends at the size of the small messages,
// which are always the most, and allocates every larger one anew.
var bufferClasses = [...]int{4 << 10, 20 << 10, 96 << 10, 400 << 10}

// kept is how many buffers of each class a loop keeps at most.
var kept = [len(bufferClasses)]int{1024, 256, 64, 16}

// buffers is a loop's memory for buffers that are not in use. Owned by the loop.
type buffers struct {
	free [len(bufferClasses)][]*buffer
}

// get returns an empty buffer for at least n bytes.
func (p *buffers) get(n int) *buffer {
	for class, size := range bufferClasses {
		if n > size {
			continue
		}
		if last := len(p.free[class]) - 1; last >= 0 {
			b := p.free[class][last]
			p.free[class] = p.free[class][:last]
			return b
		}
		return &buffer{make([]byte, 0, size), int8(class)}
	}
	return &buffer{make([]byte, 0, n), int8(len(bufferClasses))}
}

// put takes back a buffer; nil is none. Nobody may use its bytes any more.
func (p *buffers) put(b *buffer) {
	if b == nil || int(b.class) == len(bufferClasses) || len(p.free[b.class]) == kept[b.class] {
		return
	}
	b.B = b.B[:0]
	p.free[b.class] = append(p.free[b.class], b)
}

// room returns a buffer with the bytes of b, nil being none, and room for n more: b itself if it has that.
func (p *buffers) room(b *buffer, n int) *buffer {
	if b == nil {
		return p.get(n)
	}
	if cap(b.B)-len(b.B) >= n {
		return b
	}
	need := len(b.B) + n
	if need > bufferClasses[len(bufferClasses)-1] {
		need += need / 2 // no class: grow as append does
	}
	larger := p.get(need)
	larger.B = append(larger.B, b.B...)
	p.put(b)
	return larger
}

// append appends data to b, which may be nil, and returns the buffer that has it.
func (p *buffers) append(b *buffer, data []byte) *buffer {
	b = p.room(b, len(data))
	b.B = append(b.B, data...)
	return b
}
