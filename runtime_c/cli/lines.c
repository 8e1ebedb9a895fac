#include "posix.h"

#include "lines.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { longest_line = 8 << 20, read_bytes = 64 * 1024 };

lines_result lines_next(lines *l, bool wait, buffer *line) {
    buffer_clear(line);
    for (;;) {
        char *end = l->data.n > l->searched ? memchr(l->data.data + l->searched, '\n', l->data.n - l->searched) : NULL;
        if (end != NULL || (l->ended && l->data.n > 0)) {
            size_t n = end != NULL ? (size_t)(end - l->data.data) : l->data.n;
            buffer_put(line, l->data.data, n);
            buffer_drop(&l->data, n + (end != NULL));
            l->searched = 0;
            return LINE;
        }
        l->searched = l->data.n;
        if (l->ended) {
            return END;
        }
        if (l->data.n > longest_line) {
            return TOO_LONG;
        }
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        int ready = poll(&input, 1, wait ? -1 : 0);
        if (ready == 0) {
            return NO_LINE;
        }
        if (ready < 0) {
            if (errno == EINTR) {
                return INTERRUPTED;
            }
            l->ended = true;
            continue;
        }
        buffer_reserve(&l->data, read_bytes);
        ssize_t n = read(STDIN_FILENO, l->data.data + l->data.n, read_bytes);
        if (n < 0 && errno == EINTR) {
            return INTERRUPTED;
        }
        if (n < 0 && errno == EAGAIN) {
            continue;
        }
        if (n <= 0) {
            l->ended = true;
        } else {
            l->data.n += (size_t)n;
        }
    }
}
