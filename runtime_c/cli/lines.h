/* lines.h: lines of standard input, read with or without waiting. */
#ifndef EDGELLM_RT_LINES_H
#define EDGELLM_RT_LINES_H

#include "buffer.h"

typedef struct lines {
    buffer data;
    size_t searched; /* no newline before here */
    bool ended;
} lines;

typedef enum lines_result { LINE, NO_LINE, END, INTERRUPTED, TOO_LONG } lines_result;

/* The next line without its newline, appended to `line` after clearing it. NO_LINE only where `wait` is false;
 * INTERRUPTED when a signal came. A last line without a newline counts. */
lines_result lines_next(lines *l, bool wait, buffer *line);

#endif
