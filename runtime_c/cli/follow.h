/* follow.h: a GPU that computes each step from the numbers of another one, so that kernels are compared one by one. */
#ifndef EDGELLM_RT_FOLLOW_H
#define EDGELLM_RT_FOLLOW_H

#if defined(ELLM_VULKAN) && !defined(__ANDROID__) /* a phone is followed by the machine that deploys to it */
#define EDGELLM_FOLLOWS
#include <stdio.h>

#include "engine.h"
#include "observe.h"

/* What `trace --data` printed of another device. Untrusted: at worst it makes the numbers of this one wrong. */
typedef struct follower {
    FILE *file; /* NULL: none */
    buffer line;
    uint8_t *piece;
} follower;

/* Opens --follow and reads its first line, if it was given. USAGE where the processor computes. */
ellm_status follow_open(follower *f, const settings *s, const engine *e, ellm_error *error);
/* Reads the line of the step under way, which must begin as `expected`. BUNDLE_FORMAT if it does not. */
ellm_status follow_line(follower *f, const buffer *expected, ellm_error *error);
/* Puts what follows in the file where this device wrote. */
ellm_status follow_bytes(follower *f, const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t offset,
                         uint64_t bytes, ellm_error *error);
void follow_close(follower *f);

#else
typedef int follower; /* this program follows nobody */
#endif
#endif
