/* utf8.h: reading and writing UTF-8. */
#ifndef ELLM_UTF8_H
#define ELLM_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ELLM_UTF8_BAD = 0x7FFFFFFF, ELLM_UTF8_CUT = 0x7FFFFFFE };

/* Reads the character at text[0], n > 0. Returns the bytes it takes and its code point in *point.
 * An ill-formed sequence gives ELLM_UTF8_BAD and the bytes of its maximal subpart (what one U+FFFD replaces, as in
 * Unicode 3.9, Rust and Python); a sequence that is well-formed so far but ends with the text gives ELLM_UTF8_CUT. */
size_t ellm_utf8_read(const uint8_t *text, size_t n, uint32_t *point);
/* Writes a code point of at most 0x10FFFF that is no surrogate; returns the bytes written, at most 4. */
size_t ellm_utf8_write(uint32_t point, uint8_t out[4]);
bool ellm_utf8_valid(const uint8_t *text, size_t n);

#endif
