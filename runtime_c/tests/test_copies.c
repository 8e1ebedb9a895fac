/* Static programs' copies, of all lengths and distances that their loops tell apart. */
#define memcpy  own_copy
#define memmove own_move
#define memset  own_set
#include "../static/copies.c"
#undef memcpy
#undef memmove
#undef memset

#include <string.h>

#include "check.h"

enum { size = 160, longest = 70, margin = 40 };

static void fill(uint8_t *bytes) {
    for (int i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(i * 7 + 1);
    }
}

static void copies(void) {
    uint8_t from[size], to[size], expected[size];
    for (size_t n = 0; n <= longest; n++) {
        for (size_t start = 0; start < 3; start++) {
            fill(from);
            memset(to, 0, size), memset(expected, 0, size);
            memcpy(expected + margin + start, from + 1, n);
            CHECK(own_copy(to + margin + start, from + 1, n) == to + margin + start);
            CHECK(memcmp(to, expected, size) == 0);
        }
    }
}

static void moves(void) {
    uint8_t bytes[size], expected[size];
    for (size_t n = 0; n <= longest; n++) {
        for (size_t to = 0; to <= (size_t)2 * margin; to++) { /* from before it to behind it */
            fill(bytes), fill(expected);
            memmove(expected + to, expected + margin, n);
            CHECK(own_move(bytes + to, bytes + margin, n) == bytes + to);
            CHECK(memcmp(bytes, expected, size) == 0);
        }
    }
}

static void sets(void) {
    uint8_t bytes[size], expected[size];
    for (size_t n = 0; n <= longest; n++) {
        fill(bytes), fill(expected);
        memset(expected + 3, 0x1ab, n);
        CHECK(own_set(bytes + 3, 0x1ab, n) == bytes + 3);
        CHECK(memcmp(bytes, expected, size) == 0);
    }
}

int main(void) {
    copies();
    moves();
    sets();
    return check_result();
}
