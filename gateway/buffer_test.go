package gateway

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestBufferSizes(t *testing.T) {
	var p buffers
	smallest, largest := bufferClasses[0], bufferClasses[len(bufferClasses)-1]
	for _, tt := range []struct{ n, want int }{
		{0, smallest}, {1, smallest}, {smallest, smallest}, {smallest + 1, bufferClasses[1]},
		{largest - 1, largest}, {largest, largest}, {largest + 1, largest + 1}, {3 * largest, 3 * largest},
	} {
		if b := p.get(tt.n); len(b.B) != 0 || cap(b.B) != tt.want {
			t.Errorf("get(%d): %d bytes of %d, want none of %d", tt.n, len(b.B), cap(b.B), tt.want)
		}
	}
}

// What was put back is given again, empty, and the latest first: it is in the cache.
func TestBufferReuse(t *testing.T) {
	var p buffers
	a, b := p.get(1), p.get(1)
	a = p.append(a, []byte("old"))
	if &a.B[0] == &b.B[:1][0] {
		t.Fatal("two buffers share their memory")
	}
	p.put(b)
	p.put(a)
	p.put(nil)
	if got := p.get(100); got != a || len(got.B) != 0 {
		t.Errorf("got %p with %q, want the latest one, %p, empty", got, got.B, a)
	}
	if got := p.get(bufferClasses[0] + 1); got == b {
		t.Error("a buffer that is too small was given")
	}
	if got := p.get(1); got != b {
		t.Error("the other one is lost")
	}
}

// A loop keeps a bounded number of each class, and none that is larger than all of them.
func TestBufferBounds(t *testing.T) {
	var p buffers
	for class, size := range bufferClasses {
		var taken []*buffer
		for range kept[class] + 10 {
			taken = append(taken, p.get(size))
		}
		for _, b := range taken {
			p.put(b)
		}
		if n := len(p.free[class]); n != kept[class] {
			t.Errorf("%d buffers of %d bytes are kept, want %d", n, size, kept[class])
		}
	}
	p.put(p.get(bufferClasses[len(bufferClasses)-1] + 1))
	total := 0
	for class := range p.free {
		total += len(p.free[class]) * bufferClasses[class]
	}
	if most := 32 << 20; total > most {
		t.Errorf("a loop keeps up to %d bytes, want %d at most", total, most)
	}
}

// A buffer that grows beyond all classes grows by factors: many small pieces must not copy it each time.
func TestBufferGrowth(t *testing.T) {
	var p buffers
	var b *buffer
	piece := make([]byte, 1<<10)
	moves := 0
	for range 8 << 10 {
		was := b
		if b = p.append(b, piece); b != was {
			moves++
		}
	}
	if len(b.B) != 8<<20 {
		t.Fatalf("%d bytes, want 8 MiB", len(b.B))
	}
	if moves > 20 {
		t.Errorf("%d moves for 8 MiB", moves)
	}
}

// Buffers in use keep their bytes whatever happens to the others.
func TestBufferModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p buffers
		type model struct {
			b    *buffer
			want []byte
		}
		var used []*model
		size := rapid.OneOf(rapid.IntRange(0, 64), rapid.IntRange(0, 30<<10), rapid.IntRange(90<<10, 500<<10))
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			fill := bytes.Repeat([]byte{byte(step + 1)}, size.Draw(t, "size"))
			switch i := rapid.IntRange(-2, len(used)-1).Draw(t, "buffer"); {
			case i == -2:
				used = append(used, &model{b: p.get(len(fill))})
			case i == -1:
				used = append(used, &model{p.append(nil, fill), fill})
			default:
				m := used[i]
				switch rapid.SampledFrom([]string{"append", "room", "put"}).Draw(t, "operation") {
				case "append":
					m.b = p.append(m.b, fill)
					m.want = append(m.want, fill...)
				case "room":
					m.b = p.room(m.b, len(fill))
					if cap(m.b.B)-len(m.b.B) < len(fill) {
						t.Fatalf("room for %d bytes, want %d", cap(m.b.B)-len(m.b.B), len(fill))
					}
				case "put":
					p.put(m.b)
					used = append(used[:i], used[i+1:]...)
				}
			}
			for i, m := range used {
				if !bytes.Equal(m.b.B, m.want) {
					t.Fatalf("buffer %d has lost its bytes", i)
				}
				for _, o := range used[:i] {
					if o.b == m.b {
						t.Fatal("a buffer was given twice")
					}
				}
			}
		}
		for class := range p.free {
			for _, b := range p.free[class] {
				if len(b.B) != 0 || cap(b.B) < bufferClasses[class] || int(b.class) != class {
					t.Fatalf("a kept buffer has %d bytes of %d, class %d in the list of %d", len(b.B), cap(b.B), b.class, class)
				}
			}
		}
	})
}

func TestBufferAllocatesNothing(t *testing.T) {
	var p buffers
	large := make([]byte, 300<<10)
	if n := testing.AllocsPerRun(100, func() {
		b := p.append(nil, large[:100])
		b = p.append(b, large[:10<<10]) // the next class
		b = p.append(b, large)
		p.put(b)
	}); n != 0 {
		t.Errorf("%v allocations per use, want 0", n)
	}
}
