/* memcpy, memmove and memset of static programs, 16 bytes at a time. Zig's own, as it links them for the least size, go
 * byte by byte: 200,000 turns to copy the logits of 49,152 tokens. */
#include <stddef.h>
#include <stdint.h>

#if defined __clang__ /* or these loops would become calls of themselves */
#define OWN __attribute__((no_builtin))
#else
#define OWN __attribute__((optimize("no-tree-loop-distribute-patterns")))
#endif

enum { wide = 16 };

typedef uint8_t vector __attribute__((vector_size(wide), aligned(1), may_alias));

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);

OWN void *memmove(void *to, const void *from, size_t n) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((uintptr_t)out - (uintptr_t)in >= n) { /* what is written has been read, or is not of it */
        for (; n >= wide; n -= wide, out += wide, in += wide) {
            *(vector *)out = *(const vector *)in;
        }
        for (; n > 0; n--) {
            *out++ = *in++;
        }
        return to;
    }
    for (; n >= wide; n -= wide) {
        *(vector *)(out + n - wide) = *(const vector *)(in + n - wide);
    }
    for (; n > 0; n--) {
        out[n - 1] = in[n - 1];
    }
    return to;
}

OWN void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    return memmove(to, from, n);
}

OWN void *memset(void *to, int value, size_t n) {
    uint8_t *out = to, byte = (uint8_t)value;
    const vector bytes = (vector){0} + byte;
    for (; n >= wide; n -= wide, out += wide) {
        *(vector *)out = bytes;
    }
    for (; n > 0; n--) {
        *out++ = byte;
    }
    return to;
}
